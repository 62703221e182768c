"""All hyperparameters of the classic methods. The methods share them, so that none is tuned worse than another."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twofold_checkpoint.manifest import HeadName


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """Hold the settings of one classic training. Learning rates are those of AdamW after the warm-up."""

    epochs: int = 3
    batch_size: int = 32
    backbone_learning_rate: float = 3e-4
    """Learning rate of the top block."""
    layer_decay: float = 0.9
    """Factor from the learning rate of a block to that of the block below."""
    head_learning_rate: float = 1e-3
    probe_epochs: int = 3
    """Epochs that first train the adapted head alone over the frozen backbone."""
    probe_learning_rate: float = 3e-3
    """Learning rate of the head in these epochs."""
    warmup_ratio: float = 0.1
    """Fraction of the steps in which the learning rates rise; they then decay to zero."""
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    mixed_precision: bool = True
    """Multiply in bf16 on CPUs that support it, as Twofold's own training does."""
    ner_weight: float = 8.0
    """Weight of a loss per token relative to a loss per text: a text has about as many words. It applies only while NER
    is adapted; with it a protected NER head would dominate the classifier's updates."""

    lwf_weight: float = 1.0
    lwf_temperature: float = 2.0
    derpp_alpha: float = 0.3
    """Weight of the squared distance to the stored logits."""
    derpp_beta: float = 1.0
    """Weight of the memory's labels, the same as in plain rehearsal."""
    ewc_weight: float = 1.0
    """Weight of the drift of a parameter with the mean Fisher information."""
    ewc_texts: int = 500
    """Number of memory texts from which the Fisher information is estimated."""

    def for_head(self, head: HeadName) -> Hyperparameters:
        """Return the hyperparameters for adapting a head."""
        return self if head == "ner" else replace(self, ner_weight=1.0)

    def weight(self, head: HeadName) -> float:
        """Return the weight of a head's mean loss."""
        return self.ner_weight if head == "ner" else 1.0


DEFAULTS = Hyperparameters()

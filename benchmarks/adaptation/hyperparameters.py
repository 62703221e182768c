"""Every number that the classic rows depend on. All rows share the rates, so that none is a strawman."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twofold_checkpoint.manifest import HeadName


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Hold the settings of one classic training. Rates are AdamW's, at the end of the warm-up."""

    epochs: int = 3
    batch_size: int = 32
    backbone: float = 3e-4
    """Rate of the top block."""
    layer_decay: float = 0.9
    """Factor from a block to the one below."""
    head: float = 1e-3
    probe_epochs: int = 3
    """Epochs of the adapted head alone, over a backbone that stays, before anything else moves."""
    probe: float = 3e-3
    """Rate of the head in these."""
    warmup: float = 0.1
    """Share of the steps in which the rates rise; in the rest they fall to zero."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    mixed_precision: bool = True
    """Blocks multiply in bf16 where the CPU is made for it, in these rows as in ours."""
    ner_weight: float = 8.0
    """Weight of a loss per token beside a loss per text: a text has about as many words. Only where NER is adapted: a
    protected NER head that pulls so hard would leave the classifier little of each step."""

    lwf_weight: float = 1.0
    lwf_temperature: float = 2.0
    derpp_logits: float = 0.3
    """Weight of the squared distance to the stored logits (DER++'s alpha)."""
    derpp_labels: float = 1.0
    """Weight of the remembered labels (DER++'s beta), as high as in plain rehearsal."""
    ewc_weight: float = 1.0
    """Weight of the drift of a parameter whose Fisher information is the mean of all."""
    ewc_texts: int = 500
    """Remembered texts from which the Fisher information is estimated."""

    def adapting(self, head: HeadName) -> Rates:
        """Return the rates for adapting a head."""
        return self if head == "ner" else replace(self, ner_weight=1.0)

    def weight(self, head: HeadName) -> float:
        """Return the weight of a head's mean loss."""
        return self.ner_weight if head == "ner" else 1.0


DEFAULT = Rates()

"""The recipe: all hyperparameters of a training, and the rules that choose their defaults. The rules are pure functions of counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twofold_checkpoint.manifest import HeadName, MemoryMode
from twofold_checkpoint.protocol.job import Freeze, Hyperparameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The resolved hyperparameters of a training. Learning rates are those of AdamW after the warm-up."""

    epochs: int
    batch_size: int
    """New texts per step. Rehearsed texts come on top."""
    head_learning_rate: float
    backbone_learning_rate: float
    """Learning rate of the top shared block."""
    layer_decay: float
    warmup_ratio: float
    weight_decay: float
    patience: int
    rehearsal_ratio: float
    """Rehearsed texts per new text in an epoch."""
    fork_rehearsal_ratio: float
    """Rehearsed texts per new text while a fork trains, where the protected head needs no rehearsal."""
    rehearsed_weight: float
    """Weight of all losses on rehearsed texts, relative to those on new texts."""
    unfrozen_blocks: int
    middle_epochs: int
    """Epochs of an intermediate stage, which trains fewer blocks than the last one."""
    ner_weight: float
    """Weight of the NER head's mean loss per token, relative to the classifier's mean loss per text."""
    protected_weight: float
    """Weight of all losses of the protected head, relative to those of the adapted head."""
    probe_epochs: int
    """Epochs of a stage that trains only heads, on cached features. They cost almost nothing."""
    probe_learning_rate: float
    """Learning rate of a head in a stage that trains only heads."""
    refit_epochs: int
    """Epochs of the refit stage that trains the head once more, on cached features."""
    refit_learning_rate: float
    """Learning rate of the head in that refit stage."""
    balance_epochs: int
    """Epochs of the refit stage that trains the upper half of the trained blocks once more."""
    fork_blocks: int
    """Number of blocks in a fork."""
    fork_learning_rate: float
    """Learning rate of the top block of a fork."""
    fork_share: float
    """Share of the epochs, rounded up, that train all blocks of a fork; a refit stage then trains its upper half."""
    distillation: float
    """Weight of distillation from the base for the protected head, relative to the label losses."""
    retention: float
    """Weight of distillation for the old labels of the adapted head, on rehearsed texts."""
    repair: float
    """Weight of distillation for tokens that new texts leave open: those outside every span, if old types are unannotated."""
    temperature: float
    """Distillation temperature."""
    projection: float
    """Share of the protected activations' energy that updates of shared blocks may not touch; 0 disables the projection."""
    guard: bool
    """Whether the guard checks the protected task while shared blocks train."""
    train_norms: bool
    """Whether normalisation layers train with their blocks."""
    mixed_precision: bool
    """Whether the blocks compute training steps in bf16; scoring always uses fp32."""


MIN_MIXED_PRECISION_SIZE = 256
"""Smallest hidden size for which bf16 is faster: below it, the casts take as long as they save. At 384, a step of 32 texts of
14 tokens is 1.7 times as fast."""
PROJECTION = 0.999
"""Default share of the protected activations' energy that updates may not touch: without texts to rehearse, it is on."""
MIN_REHEARSED = 450
"""Smallest number of rehearsed texts in an epoch, as far as MAX_REHEARSAL_RATIO allows."""
MAX_REHEARSAL_RATIO = 3.0
MIN_REHEARSAL_RATIO = 1.0
MIN_FORK_REHEARSAL_RATIO = 0.5
"""Bounds of the rehearsal ratio. With half as many rehearsed texts, shared blocks lost 2.1 points of the old labels instead of
0.7; a fork lost nothing (ADR 33)."""


def default_recipe(
    freeze: Freeze,
    head: HeadName,
    *,
    blocks: int,
    examples: int,
    hidden_size: int,
    remembers: MemoryMode = "examples",
    bf16: bool = False,
) -> Recipe:
    """Return the default recipe of an adaptation.

    *remembers* is the memory mode of the base; *bf16* tells whether this machine has fast bf16 arithmetic.
    """
    epochs = 8 if examples < 500 else 5 if examples < 5000 else 3
    small = hidden_size <= 512
    rehearsal_ratio, fork_rehearsal_ratio = (
        min(MAX_REHEARSAL_RATIO, max(minimum, MIN_REHEARSED / max(1, examples)))
        for minimum in (MIN_REHEARSAL_RATIO, MIN_FORK_REHEARSAL_RATIO)
    )
    return Recipe(
        epochs=epochs,
        batch_size=batch_size_for(examples, rehearsal_ratio if remembers == "examples" else 0.0),
        head_learning_rate=1e-3,
        # Two thirds of the rate of an initial training, which has nothing to protect.
        backbone_learning_rate=2e-4 if small else 3e-5,
        layer_decay=0.9,
        warmup_ratio=0.1,
        weight_decay=0.01,
        patience=2,
        rehearsal_ratio=rehearsal_ratio,
        fork_rehearsal_ratio=fork_rehearsal_ratio,
        rehearsed_weight=0.5,
        unfrozen_blocks=blocks if freeze == "head" else 0,
        middle_epochs=epochs,
        # A text has about eight words, so a weight of 8 balances both heads per text. For a protected NER head that is too
        # much and slows the classifier: on CLINC150 after SNIPS, the accuracy on new labels was 81.6 instead of 85.4.
        ner_weight=8.0 if head == "ner" else 1.0,
        # The protected head only has to be maintained: on CLINC150 after SNIPS, a quarter of the weight raised the accuracy
        # on new labels from 81.7 to 86.4, and entities stayed at 95.3 or more.
        protected_weight=0.5 if head == "ner" else 0.25,
        probe_epochs=4 * epochs,
        probe_learning_rate=3e-3,
        refit_epochs=6,
        refit_learning_rate=1e-3,
        balance_epochs=3,
        # The lower blocks matter as well: on three new domains of SNIPS, six blocks reached an F1 of 92.0 and four 89.1; on
        # CLINC150 the accuracies were 86.5 and 84.8.
        fork_blocks=blocks,
        # Lower than for shared blocks: only rehearsal keeps a fork close to the base, and a step has half as many new texts
        # as plain fine-tuning, so there are twice as many steps.
        fork_learning_rate=1.5e-4 if small else 2.5e-5,
        # Lower blocks converge first (arXiv:1706.05806): freezing them after two of three or five epochs cost nothing, and
        # after one epoch two points of the new labels.
        fork_share=0.4,
        distillation=1.0,
        retention=1.0,
        repair=0.0,
        temperature=2.0,
        projection=PROJECTION if remembers == "statistics" else 0.0,
        guard=True,
        train_norms=True,
        mixed_precision=bf16 and hidden_size >= MIN_MIXED_PRECISION_SIZE,
    )


def batch_size_for(examples: int, ratio: float) -> int:
    """Return the number of new texts per step: 32 including the rehearsed ones, or 16 if there are few examples."""
    return max(1, round((16 if examples < 320 else 32) / (1 + ratio)))


def init_recipe(*, blocks: int, examples: int, hidden_size: int, bf16: bool = False) -> Recipe:
    """Return the default recipe of an initial training, which has nothing to protect."""
    recipe = default_recipe("staged", "ner", blocks=blocks, examples=examples, hidden_size=hidden_size, bf16=bf16)
    return replace(
        recipe,
        epochs=16 if examples < 1000 else 8,
        batch_size=batch_size_for(examples, 0.0),
        middle_epochs=1,
        probe_epochs=3,
        patience=4,
        rehearsal_ratio=0.0,
        head_learning_rate=2e-3,
        backbone_learning_rate=3e-4 if hidden_size <= 512 else 5e-5,
        # A weight of 8, as in NER adaptations, neglects the classifier: on the dev set of HWU64 it gave 91.8 / 81.5
        # (accuracy / F1) instead of 92.2 / 80.7, and a mean over all labels and types of 88.6 instead of 89.7.
        ner_weight=3.0,
    )


def apply_hyperparameters(requested: Hyperparameters, default: Recipe, *, blocks: int) -> Recipe:
    """Return the default recipe with the requested hyperparameters in place of its values."""
    named = {
        name: getattr(requested, name) for name in requested.__struct_fields__ if getattr(requested, name) is not None
    }
    if "epochs" in named:
        named["probe_epochs"] = named["middle_epochs"] = named["epochs"]
        named["balance_epochs"] = min(default.balance_epochs, named["epochs"])
    if "rehearsal_ratio" in named:
        named["fork_rehearsal_ratio"] = named["rehearsal_ratio"]
    if "backbone_learning_rate" in named:
        named["fork_learning_rate"] = named["backbone_learning_rate"]
    if named.get("unfrozen_blocks"):
        named["fork_blocks"] = min(named["unfrozen_blocks"], blocks)
    if "head_learning_rate" in named:
        named["probe_learning_rate"] = named["head_learning_rate"]
    recipe = replace(default, **named)
    unfrozen = recipe.unfrozen_blocks
    return replace(recipe, unfrozen_blocks=unfrozen if 0 < unfrozen <= blocks else blocks)


def to_hyperparameters(recipe: Recipe) -> Hyperparameters:
    """Return the recipe as hyperparameters, all of them set."""
    return Hyperparameters(**{name: getattr(recipe, name) for name in Hyperparameters.__struct_fields__})

"""Every number that training depends on, and the rules that choose one where the caller left it to us.

All rules are pure functions of counts. Nothing outside this file holds a rate, a count of epochs or a share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from twofold_checkpoint.manifest import HeadName, MemoryMode
from twofold_checkpoint.protocol.job import Freeze, Hyperparameters

Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hold the resolved settings of one training. Rates are AdamW's, at the end of the warm-up."""

    epochs: int
    batch_size: int
    """New texts in a step. The remembered ones that belong to them come on top."""
    head_learning_rate: float
    backbone_learning_rate: float
    """Rate of the top one of the blocks that both heads read."""
    layer_decay: float
    warmup_ratio: float
    weight_decay: float
    patience: int
    rehearsal_ratio: float
    """Remembered texts to new ones in an epoch."""
    fork_rehearsal_ratio: float
    """The same where blocks of the head's own train, and nothing else has to be held."""
    rehearsed_weight: float
    """Weight of all that is said of remembered texts, beside what is said of new ones."""
    unfrozen_blocks: int
    middle_epochs: int
    """Epochs of a stage that moves some blocks, but not all that the plan comes to."""
    ner_weight: float
    """Weight of the NER head's mean loss per token beside the classifier's mean loss per text."""
    protected_weight: float
    """Weight of all that is said of the head that is not adapted, beside what is said of the one that is."""
    probe_epochs: int
    """Epochs over cached features, in a stage that moves no block. They cost almost nothing."""
    probe_learning_rate: float
    """Rate of a head in a stage that moves no block."""
    refit_epochs: int
    """Epochs over cached features, of the head once more after its blocks."""
    refit_learning_rate: float
    """Rate of the head in them."""
    balance_epochs: int
    """Epochs of the upper half of trained blocks once more, after their head."""
    fork_blocks: int
    """Blocks of which the adapted head gets its own copies, if it comes to that."""
    fork_learning_rate: float
    """Rate of the top one of them."""
    fork_share: float
    """Share of the epochs, rounded up, that a fork trains as a whole. Its upper half goes on alone."""
    distillation: float
    """Weight of what the base checkpoint answered, for the protected head, beside the losses of the labels."""
    retention: float
    """The same for the old labels of the adapted head, on rehearsed texts."""
    repair: float
    """The same for what new texts leave open: tokens outside every span, where old types are not annotated."""
    temperature: float
    """Temperature of the distillations."""
    projection: float
    """Share of the energy of the protected activations that no update of shared blocks may touch. Zero is none of it."""
    guard: bool
    """Whether the protected task is watched while shared blocks train."""
    train_norms: bool
    """Whether normalisation layers move with their blocks."""
    mixed_precision: bool
    """Whether the blocks of training steps multiply in bf16. Never for judging."""


OLD_LABEL_DROP = 0.015
"""What the old labels may have lost on dev before blocks are trained; if it is more, they are rehearsed one to one, with full
weight: two standard errors, where 500 examples tell and three answers in a hundred change."""
MIN_MIXED_PRECISION_SIZE = 256
"""Smallest hidden size at which bf16 gains anything: below it, back and forth between the types takes as long as it saves.
At 384, a step of 32 texts of 14 tokens is 1.7 times as fast."""
CLIP_NORM = 1.0
"""Largest norm of a step's gradient."""
MIN_GAIN = 0.001
"""What a lead of new rows must add to the dev score, beyond what chance does."""
INTERPOLATIONS = (0.75, 0.5, 0.35, 0.25)
"""Shares of what was learned that are tried, largest first, when all of it is more than the guard lets pass."""
OFFSETS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
"""What is tried as the lead of new rows over old ones, in logits."""
MAX_OFFSET_COST = 0.01
"""What neither the old nor the new dev score may lose by it."""
DROP_WEIGHT = 3.0
"""How much more than anything else it counts, in choosing the lead, what the old dev score has lost since the base."""
REPORT_SECONDS = 1.0
"""Time between two progress events."""
STAGE_FLIP_RATE = 0.1
"""Share of the answers to new texts that a stage changes; says how far chance alone moves a dev score: on 100 examples of
Chatbot, a stage that was worth 15 points seemed to be worth nothing."""
OFFSET_FLIP_RATE = 0.03
"""The same of a lead of new rows: of 37 new examples, one says nothing."""
EXPECTED_FLIPS = 0.01
"""Share of the protected answers that a well protected training still changes; says beforehand what can be proven."""
CACHE_BYTES = 2 << 30
"""Features of the frozen backbone are kept in memory up to this size, and computed again and again beyond it."""

PROJECTION = 0.999
"""Energy of the protected activations that updates keep out of where there are no texts to rehearse."""

SAMPLED = 1000
"""Examples from which new rows begin, where not all features fit into memory."""

HELD_OUT_SHARE = 0.2
"""Share of the training examples that is set aside when a job brings no dev examples: half stops, half judges."""
INIT_HELD_OUT_SHARE = 0.1
"""The same for the first training."""

MIN_REHEARSED = 450
"""Remembered texts that an epoch sees at least, while that is no more than MAX_REHEARSAL_RATIO to a new one."""
MAX_REHEARSAL_RATIO = 3.0
MIN_REHEARSAL_RATIO = 1.0
MIN_FORK_REHEARSAL_RATIO = 0.5
"""Remembered texts to a new one, at most and at least. Shared blocks hold two tasks by them: with half as many they lost 2.1
points of the old labels instead of 0.7; a fork lost nothing (ADR 33)."""

MEMORY_REHEARSAL = 2000
MEMORY_DEV = 500
MEMORY_GATE = 2000
"""Most examples of each part that a checkpoint carries."""

MAX_TOKENS = 256
"""Longest window of a new checkpoint, with special tokens, if the backbone can take it."""
OVERLAP = 32
"""Tokens that two windows of a long text share."""
FLIPS_SHOWN = 20
"""Protected examples that a job's report quotes because the candidate answers them worse."""
GOLDEN_ANSWERS = 8
"""Texts with answers that an engine must repeat before it may serve."""
PARITY_TOLERANCE = 1e-4
"""Largest difference of a logit between the exported graph and the trained model."""
REDUCED_MARGIN = 1.0
"""Points that a head may lose in reduced precision against the same head in fp32."""
REDUCED_JUDGED_TOKENS = 12_000
"""Tokens of held-out examples that judge a reduced graph; of a MiniLM they take two seconds, in both precisions."""
ISOLATION_TOLERANCE = 1e-5
"""Largest difference of a probability between a row alone and the same row among others."""
EXACT_TOLERANCE = 1e-5
"""Largest difference of a protected logit between the base's graph and the candidate's, where protection is exact."""


def pooling_for(causal: bool) -> Pooling:
    """Choose how token features become one feature of the text: the last token of a causal model has seen them all."""
    return "last" if causal else "mean"


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
    """Choose all settings of an adaptation from what is known before it.

    *remembers* says what the base carries, *bf16* whether this machine multiplies fast in bf16.
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
        # Two thirds of that of a first training, in which nothing has to be held.
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
        # A text has about eight words, so with that weight both heads pull equally for each text. A protected NER head
        # that pulls so hard leaves little of each step to a classifier that learns: on CLINC150 after SNIPS 81.6 instead
        # of 85.4 of the new labels came out right.
        ner_weight=8.0 if head == "ner" else 1.0,
        # It was learnt once, and has only to be held: on CLINC150 after SNIPS 86.4 instead of 81.7 of the new labels came
        # out right with a quarter of the protected weight, and entities stayed at 95.3 and more.
        protected_weight=0.5 if head == "ner" else 0.25,
        probe_epochs=4 * epochs,
        probe_learning_rate=3e-3,
        refit_epochs=6,
        refit_learning_rate=1e-3,
        balance_epochs=3,
        # What the lower blocks see matters as much: on three new domains of SNIPS all six blocks came to 92.0 of F1 and four
        # to 89.1, on CLINC150 to 86.5 and 84.8 of accuracy.
        fork_blocks=blocks,
        # Less than that of shared blocks: nothing holds these to what they were but the remembered texts, and a step sees half
        # as many new texts as one of plain fine-tuning, so there are twice as many steps.
        fork_learning_rate=1.5e-4 if small else 2.5e-5,
        # Lower blocks come to rest first (arXiv:1706.05806): after two epochs of three or five it costs nothing that was seen,
        # after one two points of what is new.
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
    """Choose how many new texts a step has: with the remembered ones there are 32, or 16 where examples are few."""
    return max(1, round((16 if examples < 320 else 32) / (1 + ratio)))


def init_recipe(*, blocks: int, examples: int, hidden_size: int, bf16: bool = False) -> Recipe:
    """Choose all settings of a first training, in which nothing has to be protected."""
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
        # With eight, as where only NER is adapted, the classifier gets too little: on the dev set of HWU64 91.8 / 81.5
        # (accuracy / F1) instead of 92.2 / 80.7, and 88.6 instead of 89.7 as the mean over all labels and types.
        ner_weight=3.0,
    )


def merge(requested: Hyperparameters, default: Recipe, *, blocks: int) -> Recipe:
    """Put what the caller asked for in the place of the defaults."""
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
    """Return the resolved settings in the form in which they were asked for."""
    return Hyperparameters(**{name: getattr(recipe, name) for name in Hyperparameters.__struct_fields__})


def blocks_per_stage(freeze: Freeze, *, blocks: int, unfrozen: int) -> tuple[int, ...]:
    """Say how many of the top blocks each stage trains, in order. Zero means the heads alone.

    Every plan begins with the heads: a probed head moves the backbone less (Kumar et al. 2022, arXiv:2202.10054).
    AUTO goes on from there by what it finds.
    """
    match freeze:
        case "all":
            return ()
        case "backbone" | "auto":
            return (0,)
        case "head":
            return (0, unfrozen)
        case "staged":
            return (0, *range(min(2, blocks), blocks + 1))


def init_blocks_per_stage(blocks: int) -> tuple[int, ...]:
    """Say the same for a first training: heads, top two blocks, everything."""
    return tuple(dict.fromkeys((0, min(2, blocks), blocks)))

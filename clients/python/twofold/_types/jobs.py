"""Adaptation jobs: what is asked of one, and what it ends with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from twofold._types.inference import Head


class Freeze(StrEnum):
    """Which parameters an adaptation may change."""

    AUTO = "auto"
    ALL = "all"
    BACKBONE = "backbone"
    HEAD = "head"
    STAGED = "staged"


class LabelPolicy(StrEnum):
    """Whether an adaptation may add labels or entity types."""

    APPEND = "append"
    FIXED = "fixed"
    REPLACE = "replace"


class MemoryMode(StrEnum):
    """What a checkpoint carries of what it has learnt from: examples, statistics without any text, or nothing."""

    EXAMPLES = "examples"
    STATISTICS = "statistics"
    NONE = "none"


class PromotePolicy(StrEnum):
    """What happens to a candidate that the gate passed."""

    AUTO = "auto"
    MANUAL = "manual"
    NEVER = "never"


class JobState(StrEnum):
    """Where a job is in its life. REJECTED is a result: it was trained, and the gate said no."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether a job in this state has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


class Verdict(StrEnum):
    """What the gate says about a candidate."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Exact:
    """Keep the protected path's tensors as they are: only the adapted head may train."""


@dataclass(frozen=True, slots=True)
class Statistical:
    """Allow the protected score to fall by *margin* points (0.01 of a score), judged on held-out data."""

    margin: float = 1.0


def _hyperparameter(help_: str) -> Any:
    """Return a field whose default None lets the trainer choose; *help_* is the text of `twofold adapt --help`."""
    return field(default=None, metadata={"help": help_})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of the training. The trainer chooses each that is None; a job contains the values that were used."""

    epochs: int | None = _hyperparameter("Passes over the training examples in each stage.")
    batch_size: int | None = _hyperparameter("New examples per step; rehearsed examples are added to them.")
    head_learning_rate: float | None = _hyperparameter("Learning rate of the adapted head.")
    backbone_learning_rate: float | None = _hyperparameter("Learning rate of the top block.")
    layer_decay: float | None = _hyperparameter(
        "Factor on the learning rate from each block to the block below it, at most 1."
    )
    warmup_ratio: float | None = _hyperparameter("Share of the steps over which the learning rate rises from zero.")
    weight_decay: float | None = _hyperparameter("Weight decay of AdamW.")
    patience: int | None = _hyperparameter("Dev evaluations without improvement after which a stage ends.")
    rehearsal_ratio: float | None = _hyperparameter("Rehearsed examples per new example; 0 turns rehearsal off.")
    unfrozen_blocks: int | None = _hyperparameter("Number of top blocks that are trained, or that a fork copies.")
    distillation: float | None = _hyperparameter(
        "Weight of the distillation loss of the protected head; 0 turns it off."
    )
    retention: float | None = _hyperparameter(
        "Weight of the distillation loss of the adapted head's old labels; 0 turns it off."
    )
    projection: float | None = _hyperparameter(
        "Share of the energy of the protected activations that updates may not touch; 0 turns projection off."
    )
    guard: bool | None = _hyperparameter(
        "Monitor the protected task during training, and restore the best state if it gets worse."
    )
    train_norms: bool | None = _hyperparameter("Train the normalisation layers together with their blocks.")
    repair: float | None = _hyperparameter(
        "Weight of the base checkpoint's predictions for types that the data does not annotate; 0 turns it off."
    )
    mixed_precision: bool | None = _hyperparameter("Train in bf16; everything that is judged is computed in fp32.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A data set that the server has stored."""

    upload_id: str
    train_examples: int = 0
    dev_examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTiming:
    """One phase of a job and its time; *end_time* is None while it runs."""

    phase: str
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One score, from 0 to 1, before and after; None where it was not measured."""

    metric: str = ""
    before: float | None = None
    after: float | None = None
    examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenProof:
    """The SHA-256 digests over the frozen tensors, before and after."""

    parameters: int = 0
    digest_before: str = ""
    digest_after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatistics:
    """What a job's data set holds."""

    train_examples: int = 0
    dev_examples: int = 0
    gate_examples: int = 0
    label_counts: Mapping[str, int] = field(default_factory=dict)
    unaligned_annotations: int = 0
    mean_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateComparison:
    """
    What held-out examples prove of the protected task, *against* "base" or "approved".

    Scores and bounds are from 0 to 1; the bounds are of *after* minus *before*, one-sided at 95 %. *needed_examples*
    would decide where these do not.
    """

    against: str = ""
    before: float = 0.0
    after: float = 0.0
    lower_bound: float = 0.0
    upper_bound: float = 0.0
    examples: int = 0
    gained: int = 0
    lost: int = 0
    needed_examples: int | None = None
    calibration_before: float | None = None
    calibration_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactProof:
    """On how many texts the protected head answers exactly as before, and the largest difference of a logit."""

    texts: int = 0
    max_error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowAgreement:
    """How often a head answered the same, of the texts that could be compared."""

    agreed: int = 0
    texts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """
    How a candidate answered live texts before it was made live.

    *failed* texts it could not answer, *slow* ones took it many times as long. A head is None where none could be compared.
    """

    texts: int = 0
    failed: int = 0
    slow: int = 0
    classifier: ShadowAgreement | None = None
    ner: ShadowAgreement | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """
    What a job measured.

    *protected* is the frozen head's task, *retained* the adapted head's old labels, *new* the given data set. *verdict*
    is None until the gate has judged; *gate* holds what it compared, *negative_flips* texts that are answered worse, and
    *exact* the proof that none is, where the protected path was not trained. *rolled_back* says why the checkpoint before
    answers again, if it does, and *shadow* how the candidate answered live texts before, if that was asked for.
    """

    protected: Comparison | None = None
    retained: Comparison | None = None
    new: Comparison | None = None
    verdict: Verdict | None = None
    frozen: FrozenProof | None = None
    dataset: DatasetStatistics | None = None
    added_labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    swap_seconds: float = 0.0
    plan: str = ""
    max_parity_error: float = 0.0
    gate: tuple[GateComparison, ...] = ()
    negative_flips: tuple[str, ...] = ()
    exact: ExactProof | None = None
    rolled_back: str = ""
    shadow: ShadowReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One adaptation, as it was when the server was asked."""

    id: str
    state: JobState = JobState.QUEUED
    phase: str = ""
    phases: tuple[PhaseTiming, ...] = ()
    reason: str = ""
    head: Head | None = None
    freeze: Freeze = Freeze.AUTO
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    base_checkpoint_id: str = ""
    candidate_checkpoint_id: str = ""
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    report: JobReport = field(default_factory=JobReport)
    queue_position: int = 0
    last_sequence: int = 0
    promote: PromotePolicy = PromotePolicy.AUTO
    request_id: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state.is_over

"""Adaptation jobs: the settings of a request, and the job itself."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from twofold._types.inference import Head
from twofold._types.job_report import JobReport


class Freeze(StrEnum):
    """The parameters that an adaptation leaves unchanged."""

    AUTO = "auto"
    ALL = "all"
    BACKBONE = "backbone"
    HEAD = "head"
    STAGED = "staged"


class LabelPolicy(StrEnum):
    """What happens to labels or entity types that the checkpoint does not have."""

    APPEND = "append"
    FIXED = "fixed"
    REPLACE = "replace"


class MemoryMode(StrEnum):
    """What a checkpoint stores to protect its tasks: examples, statistics without any text, or nothing."""

    EXAMPLES = "examples"
    STATISTICS = "statistics"
    NONE = "none"


class PromotePolicy(StrEnum):
    """What happens to a candidate that passed the gate."""

    AUTO = "auto"
    MANUAL = "manual"
    NEVER = "never"


class ReportFormat(StrEnum):
    """The format of a report: an HTML page, or a JSON document with the same contents."""

    HTML = "html"
    JSON = "json"


class JobState(StrEnum):
    """The state of a job. REJECTED is a result: a candidate was trained and did not pass the gate."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether the state is final."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True, slots=True)
class Exact:
    """Leave every tensor that the protected head uses unchanged."""


@dataclass(frozen=True, slots=True)
class Statistical:
    """Accept a loss of the protected score of at most *margin* points (0.01 of a score), judged on held-out examples."""

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
    """One phase of a job with its times; *end_time* is None while it is running."""

    phase: str
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One adaptation, in the state in which the server returned it."""

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

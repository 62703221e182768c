"""The events of a job."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from twofold._types.job_report import Verdict
from twofold._types.jobs import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """The progress of the training; *loss* is averaged since the last report."""

    stage: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float = 0.0
    remaining_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardCheck:
    """
    One evaluation of the protected task during training.

    *allowed* is the largest accepted drop below *baseline*; *action* is "none", "restore" (the best state was restored) or
    "leave" (the stage ended).
    """

    step: int = 0
    baseline: float = 0.0
    value: float = 0.0
    allowed: float = 0.0
    examples: int = 0
    action: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMeasured:
    """
    One score on held-out examples, from 0 to 1.

    *figure* is "protected", "retained", "new" or "dev"; *moment* is "before", "during" or "after" the training.
    """

    figure: str = ""
    moment: str = ""
    metric: str = ""
    value: float = 0.0
    examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnded:
    """The end of a phase, with its duration."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The candidate has been published to the store."""

    checkpoint_id: str


Payload: TypeAlias = JobState | StepProgress | ScoreMeasured | GuardCheck | PhaseEnded | Verdict | Published


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """
    One event of a job.

    Programs match on the type of *payload*, which is None for an event that is only a message. *warning* is true if the
    message is a warning.
    """

    sequence: int = 0
    time: datetime | None = None
    phase: str = ""
    message: str = ""
    payload: Payload | None = None
    warning: bool = False

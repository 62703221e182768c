"""What a job says while it runs."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from twofold._types.jobs import JobState, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """How far the training is; *loss* is averaged since the last report."""

    stage: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float = 0.0
    remaining_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLook:
    """One look at the protected task while training goes on; *action* is "none", "restore" or "leave"."""

    step: int = 0
    baseline: float = 0.0
    value: float = 0.0
    allowed: float = 0.0
    examples: int = 0
    action: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMeasured:
    """One score on held-out examples: which *figure*, at which *moment* of the training."""

    figure: str = ""
    moment: str = ""
    metric: str = ""
    value: float = 0.0
    examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnded:
    """A phase is over and took *seconds*."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The candidate is in the store."""

    checkpoint_id: str


Payload: TypeAlias = JobState | StepProgress | ScoreMeasured | GuardLook | PhaseEnded | Verdict | Published


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """
    One thing that a job said.

    *payload* is for programs: match on its type. *warning* is true for what a person should read.
    """

    sequence: int = 0
    time: datetime | None = None
    phase: str = ""
    message: str = ""
    payload: Payload | None = None
    warning: bool = False

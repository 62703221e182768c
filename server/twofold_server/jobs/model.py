"""The job model: a specification, its event records, and the job that results from replaying them."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from typing import Literal

import msgspec
from msgspec.structs import replace
from twofold_checkpoint.protocol.events import (
    Compared,
    DatasetDescribed,
    Event,
    ExactVerified,
    FrozenVerified,
    GateEvaluated,
    NoteAdded,
    ParityMeasured,
    PhaseStarted,
    PlanMade,
    Published,
    ScoreMeasured,
    VerdictName,
)
from twofold_checkpoint.protocol.job import Hyperparameters, TrainingRequest

from twofold_server.versions.events import RolledBack, Shadowed

MAX_NOTES = 100
"""Maximum number of notes in a report. Later notes appear only among the events."""

PromoteName = Literal["auto", "manual", "never"]


class JobState(StrEnum):
    """State of a job in its life cycle."""

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


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A submitted job, without inline examples: the request to the trainer, and what the server does before and after."""

    request: TrainingRequest
    upload_id: str = ""
    """The upload with the examples; empty if they were inline."""
    base: str = "current"
    """Checkpoint id or alias. An alias is resolved when the job starts, so that queued jobs build on each other."""
    promote: PromoteName = "auto"
    shadow_share: float | None = None
    """None: use the server's setting."""
    request_id: str = ""


class _ServerEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """Base class of events that the server adds to the trainer's events."""


class StateEntered(_ServerEvent, frozen=True):
    """The job changed state; *reason* explains why in one sentence."""

    state: JobState
    reason: str
    lost: bool = False
    """Whether the running job lost its trainer or server."""


CANCELLED = StateEntered(state=JobState.CANCELLED, reason="CancelJob was called while the job ran.")


class BaseChosen(_ServerEvent, frozen=True):
    """The job starts from this checkpoint."""

    checkpoint_id: str


class PhaseEnded(_ServerEvent, frozen=True):
    """The running phase ended."""

    seconds: float


class Swapped(_ServerEvent, frozen=True):
    """The candidate went live."""

    checkpoint_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainerDied:
    """The trainer was killed from outside or by the system without a final event. Another trainer may resume the job."""

    reason: str


JobEvent = StateEntered | BaseChosen | PhaseEnded | Swapped | Shadowed | RolledBack | Event


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job event with its sequence number (from 1), time and phase."""

    sequence: int
    time: dt.datetime
    phase: str
    event: JobEvent


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A started phase. *ended* is None while it runs."""

    name: str
    started: dt.datetime
    ended: dt.datetime | None = None


class ScoreChange(msgspec.Struct, frozen=True, kw_only=True):
    """A score before and after adaptation; None if not measured."""

    metric: str
    examples: int
    before: float | None = None
    after: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The measurements of a job so far."""

    protected: ScoreChange | None = None
    retained: ScoreChange | None = None
    new: ScoreChange | None = None
    verdict: VerdictName | None = None
    frozen: FrozenVerified | None = None
    dataset: DatasetDescribed | None = None
    added_labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    swap_seconds: float = 0.0
    plan: str = ""
    max_parity_error: float = 0.0
    gate: tuple[Compared, ...] = ()
    negative_flips: tuple[str, ...] = ()
    exact: ExactVerified | None = None
    shadow: Shadowed | None = None
    rolled_back: str = ""
    """Why the previous checkpoint was restored; empty if it was not."""


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job: its specification and the result of replaying its events."""

    id: str
    spec: JobSpec
    created: dt.datetime
    base: str
    state: JobState = JobState.QUEUED
    started: dt.datetime | None = None
    """Time of the first start."""
    ended: dt.datetime | None = None
    restarts: int = 0
    """Number of restarts after the loss of its trainer or server."""
    phases: tuple[Phase, ...] = ()
    reason: str = ""
    candidate: str = ""
    hyperparameters: Hyperparameters | None = None
    report: Report = Report()
    last_sequence: int = 0
    traceparent: str = ""
    """W3C Trace Context of the call that submitted the job; empty without one."""
    queue_position: int = 0
    """Number of queued jobs before this one. Computed on reading, not stored."""

    @property
    def phase(self) -> str:
        """Name of the running or last phase; empty before the first."""
        return self.phases[-1].name if self.phases else ""

    @property
    def running_phase(self) -> Phase | None:
        """The running phase, or None."""
        return self.phases[-1] if self.phases and self.phases[-1].ended is None else None


def new_job_id(now: dt.datetime) -> str:
    """Return an unguessable id that sorts by time."""
    return f"job-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def record(job: Job, event: JobEvent, now: dt.datetime) -> tuple[EventRecord, ...]:
    """Return numbered records of an event, preceded by PhaseEnded if the event ends the running phase."""
    events = [event]
    running = job.running_phase
    if running and isinstance(event, PhaseStarted | StateEntered):
        events.insert(0, PhaseEnded(seconds=max(0.0, (now - running.started).total_seconds())))
    return tuple(
        EventRecord(sequence=job.last_sequence + number, time=now, phase=_phase_of(entry, job), event=entry)
        for number, entry in enumerate(events, 1)
    )


def _phase_of(event: JobEvent, job: Job) -> str:
    match event:
        case PhaseStarted():
            return event.phase
        case StateEntered() | BaseChosen():
            return ""
    return job.phase


def replay(job: Job, records: Iterable[EventRecord]) -> Job:
    """Apply records to a job. A stored job always equals the replay of all its records over the new job."""
    return reduce(_apply, records, job)


def _apply(job: Job, entry: EventRecord) -> Job:
    job = replace(job, last_sequence=entry.sequence)
    match entry.event:
        case StateEntered(state=JobState.QUEUED, lost=lost):
            return replace(job, state=JobState.QUEUED, restarts=job.restarts + lost)
        case StateEntered(state=JobState.RUNNING):
            return replace(job, state=JobState.RUNNING, started=job.started or entry.time)
        case StateEntered(state=state, reason=reason):
            return replace(job, state=state, reason=reason, ended=entry.time)
        case BaseChosen(checkpoint_id=checkpoint_id):
            return replace(job, base=checkpoint_id)
        case PhaseStarted(phase=name):
            return replace(job, phases=(*job.phases, Phase(name=name, started=entry.time)))
        case PhaseEnded():
            *earlier, last = job.phases
            return replace(job, phases=(*earlier, replace(last, ended=entry.time)))
        case PlanMade(hyperparameters=resolved):
            job = replace(job, hyperparameters=resolved)
        case Published(checkpoint_id=checkpoint_id):
            return replace(job, candidate=checkpoint_id)
    return replace(job, report=_apply_to_report(job.report, entry.event))


def _apply_to_report(report: Report, event: JobEvent) -> Report:
    match event:
        case ScoreMeasured(figure="protected" | "retained" | "new" as figure, moment="before" | "after" as moment):
            old = getattr(report, figure)
            before = None if old is None else old.before
            values = {"before": event.value} if moment == "before" else {"before": before, "after": event.value}
            comparison = ScoreChange(metric=event.metric, examples=event.examples, **values)
            return replace(report, **{figure: comparison})
        case GateEvaluated():
            return replace(report, verdict=event.verdict, gate=event.comparisons, negative_flips=event.negative_flips)
        case ExactVerified():
            return replace(report, exact=event)
        case FrozenVerified():
            return replace(report, frozen=event)
        case DatasetDescribed():
            return replace(report, dataset=event)
        case PlanMade():
            return replace(report, plan=event.plan, added_labels=event.added_labels)
        case NoteAdded() if len(report.notes) < MAX_NOTES:
            return replace(report, notes=(*report.notes, event.message))
        case ParityMeasured():
            return replace(report, max_parity_error=max(report.max_parity_error, event.max_error))
        case Swapped():
            return replace(report, swap_seconds=event.seconds)
        case Shadowed():
            return replace(report, shadow=event)
        case RolledBack():
            return replace(report, rolled_back=event.summary)
    return report

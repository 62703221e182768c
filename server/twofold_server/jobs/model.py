"""What a job is to the server: an order, the events that followed, and the view that they add up to."""

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
from twofold_checkpoint.manifest import HeadName, MemoryMode
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
from twofold_checkpoint.protocol.job import RETAINED_MARGIN, Exact, Freeze, Hyperparameters, LabelPolicy, Statistical

from twofold_server.versions.events import RolledBack, Shadowed

MAX_NOTES = 100
"""Notes in a report. Those that come later stand among the events only."""

PromoteName = Literal["auto", "manual", "never"]


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Tell whether a job in this state has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold what a caller asked for, apart from inline examples. An empty *upload_id* means that they were inline."""

    head: HeadName
    upload_id: str = ""
    annotated_types: tuple[str, ...] = ()
    freeze: Freeze = "auto"
    protection: Exact | Statistical = Statistical()
    label_policy: LabelPolicy = "append"
    retained_margin: float = RETAINED_MARGIN
    hyperparameters: Hyperparameters = Hyperparameters()
    max_runtime: float | None = None
    promote: PromoteName = "auto"
    memory: MemoryMode | None = None
    shadow_share: float | None = None
    """None means what the server is set to."""
    base: str = "current"
    """An id or an alias. An alias is resolved when the job starts, so that queued jobs build on one another."""
    seed: int = 0
    request_id: str = ""
    validate_only: bool = False


class _ServerEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """Base of the events that the server adds to the trainer's."""


class StateEntered(_ServerEvent, frozen=True):
    """The job is in another state now, and *reason* says why in one sentence."""

    state: JobState
    reason: str
    lost: bool = False
    """Whether the job ran before and lost its trainer or its server."""


CANCELLED = StateEntered(state=JobState.CANCELLED, reason="CancelJob was called while the job ran.")


class BaseChosen(_ServerEvent, frozen=True):
    """The job starts from this checkpoint."""

    checkpoint_id: str


class PhaseEnded(_ServerEvent, frozen=True):
    """The phase that ran is over."""

    seconds: float


class Swapped(_ServerEvent, frozen=True):
    """The candidate answers."""

    checkpoint_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainerDied:
    """Say that the trainer was ended from outside, or by the system, and had no last word: another one may go on with the job."""

    reason: str


JobEvent = StateEntered | BaseChosen | PhaseEnded | Swapped | Shadowed | RolledBack | Event


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a job, numbered from 1, with its time and the phase in which it happened."""

    sequence: int
    time: dt.datetime
    phase: str
    event: JobEvent


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A phase that has begun. *ended* is None while it runs."""

    name: str
    started: dt.datetime
    ended: dt.datetime | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One figure before and after; None is not measured."""

    metric: str
    examples: int
    before: float | None = None
    after: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job has measured so far."""

    protected: Comparison | None = None
    retained: Comparison | None = None
    new: Comparison | None = None
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
    """Why the checkpoint before answers again; empty if it does not."""


class JobView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as it is shown: its order and the sum of its events."""

    id: str
    order: Order
    created: dt.datetime
    base: str
    state: JobState = JobState.QUEUED
    started: dt.datetime | None = None
    """When it first ran."""
    ended: dt.datetime | None = None
    losses: int = 0
    """How often it lost its trainer or its server while it ran, and went on."""
    phases: tuple[Phase, ...] = ()
    reason: str = ""
    candidate: str = ""
    hyperparameters: Hyperparameters | None = None
    report: Report = Report()
    last_sequence: int = 0
    traceparent: str = ""
    """Where the call that asked for it stands in its trace, as W3C Trace Context writes it; empty without one."""
    queue_position: int = 0
    """Jobs that wait before this one. It is counted when the job is read and is no part of the sum."""

    @property
    def phase(self) -> str:
        """The phase that runs, or the last one that ran."""
        return self.phases[-1].name if self.phases else ""

    @property
    def running_phase(self) -> Phase | None:
        """The phase that has begun and not ended."""
        return self.phases[-1] if self.phases and self.phases[-1].ended is None else None


def new_job_id(now: dt.datetime) -> str:
    """Make an id that sorts by time and that nobody can guess."""
    return f"job-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def record(view: JobView, event: JobEvent, now: dt.datetime) -> tuple[EventRecord, ...]:
    """Number what was said, after the end of the running phase if this ends it."""
    events = [event]
    running = view.running_phase
    if running and isinstance(event, PhaseStarted | StateEntered):
        events.insert(0, PhaseEnded(seconds=max(0.0, (now - running.started).total_seconds())))
    return tuple(
        EventRecord(sequence=view.last_sequence + number, time=now, phase=_phase_of(entry, view), event=entry)
        for number, entry in enumerate(events, 1)
    )


def _phase_of(event: JobEvent, view: JobView) -> str:
    match event:
        case PhaseStarted():
            return event.phase
        case StateEntered() | BaseChosen():
            return ""
    return view.phase


def fold(view: JobView, records: Iterable[EventRecord]) -> JobView:
    """Add records to a view. What is shown of a job is always the fold of all its records over its first view."""
    return reduce(_apply, records, view)


def _apply(view: JobView, entry: EventRecord) -> JobView:
    view = replace(view, last_sequence=entry.sequence)
    match entry.event:
        case StateEntered(state=JobState.QUEUED, lost=lost):
            return replace(view, state=JobState.QUEUED, losses=view.losses + lost)
        case StateEntered(state=JobState.RUNNING):
            return replace(view, state=JobState.RUNNING, started=view.started or entry.time)
        case StateEntered(state=state, reason=reason):
            return replace(view, state=state, reason=reason, ended=entry.time)
        case BaseChosen(checkpoint_id=checkpoint_id):
            return replace(view, base=checkpoint_id)
        case PhaseStarted(phase=name):
            return replace(view, phases=(*view.phases, Phase(name=name, started=entry.time)))
        case PhaseEnded():
            *earlier, last = view.phases
            return replace(view, phases=(*earlier, replace(last, ended=entry.time)))
        case PlanMade(hyperparameters=resolved):
            view = replace(view, hyperparameters=resolved)
        case Published(checkpoint_id=checkpoint_id):
            return replace(view, candidate=checkpoint_id)
    return replace(view, report=_apply_to_report(view.report, entry.event))


def _apply_to_report(report: Report, event: JobEvent) -> Report:
    match event:
        case ScoreMeasured(figure="protected" | "retained" | "new" as figure, moment="before" | "after" as moment):
            old = getattr(report, figure)
            before = None if old is None else old.before
            values = {"before": event.value} if moment == "before" else {"before": before, "after": event.value}
            comparison = Comparison(metric=event.metric, examples=event.examples, **values)
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

"""The jobs of a fake server, which follow a script."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from twofold._types.job_events import JobEvent, PhaseEnded, Published, ScoreMeasured
from twofold._types.job_report import JobReport, ScoreChange, Verdict
from twofold._types.jobs import Job, JobState, PhaseTiming


@dataclass(frozen=True, slots=True, kw_only=True)
class JobScript:
    """The events of a job, *interval* seconds apart, and the initial report, to which scores in the events are added."""

    events: tuple[JobEvent, ...]
    report: JobReport
    interval: float = 0.0


@dataclass(slots=True)
class ScriptedJob:
    """A job that follows a script."""

    initial: Job
    script: JobScript
    started_at: float
    cancellation: JobEvent | None = None
    promoted: bool = False

    def events(self) -> list[JobEvent]:
        """Return the events so far."""
        count = len(self.script.events)
        if self.script.interval:
            count = min(count, 1 + int((time.monotonic() - self.started_at) / self.script.interval))
        events = [replace(event, sequence=number) for number, event in enumerate(self.script.events[:count], 1)]
        for index, event in enumerate(events):
            if event.payload == Published(checkpoint_id=""):
                events[index] = replace(event, payload=Published(checkpoint_id=f"{self.initial.id}-candidate"))
        return [*events, self.cancellation] if self.cancellation else events

    def current(self) -> Job:
        """Return the job after the events so far."""
        job = self.initial
        for event in self.events():
            job = _apply(job, event)
        return job


def _apply(job: Job, event: JobEvent) -> Job:
    """Return *job* after *event*."""
    job = replace(job, last_sequence=event.sequence, phase=event.phase or job.phase)
    report = job.report
    match event.payload:
        case JobState() as state:
            now = datetime.now(UTC)
            changes = {"reason": event.message, "end_time": now} if state.is_over else {"start_time": now}
            return replace(job, state=state, **changes)
        case ScoreMeasured(figure="protected" | "retained" | "new" as figure, moment="before" | "after" as moment) as s:
            change = getattr(report, figure) or ScoreChange(metric=s.metric, examples=s.examples)
            scores: dict[str, Any] = {figure: replace(change, **{moment: s.value})}
            return replace(job, report=replace(report, **scores))
        case Verdict() as verdict:
            return replace(job, report=replace(report, verdict=verdict))
        case Published(checkpoint_id=checkpoint_id):
            return replace(job, candidate_checkpoint_id=checkpoint_id)
        case PhaseEnded(seconds=seconds):
            end = event.time or datetime.now(UTC)
            timing = PhaseTiming(phase=event.phase, start_time=end - timedelta(seconds=seconds), end_time=end)
            return replace(job, phases=(*job.phases, timing))
    return job

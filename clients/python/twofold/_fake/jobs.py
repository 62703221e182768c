"""How the fake server's jobs play their scripts."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from twofold._types.job_events import (
    JobEvent,
    PhaseEnded,
    Published,
    ScoreMeasured,
)
from twofold._types.jobs import (
    Comparison,
    Job,
    JobReport,
    JobState,
    PhaseTiming,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobScript:
    """The events of a job in order, *pace* seconds apart, and the report on top of the scores among them."""

    events: tuple[JobEvent, ...]
    report: JobReport
    pace: float = 0.0


@dataclass(slots=True)
class Play:
    """A job that plays its script."""

    job: Job
    script: JobScript
    began: float
    cancelled: JobEvent | None = None
    promoted: bool = False

    def events(self) -> list[JobEvent]:
        """Return the events that have happened by now."""
        due = len(self.script.events)
        if self.script.pace:
            due = min(due, 1 + int((time.monotonic() - self.began) / self.script.pace))
        happened = [replace(one, sequence=i) for i, one in enumerate(self.script.events[:due], 1)]
        for i, event in enumerate(happened):
            if event.payload == Published(checkpoint_id=""):
                happened[i] = replace(event, payload=Published(checkpoint_id=f"{self.job.id}-candidate"))
        return [*happened, self.cancelled] if self.cancelled else happened

    def now(self) -> Job:
        """Return the job as its events have left it."""
        job = self.job
        for event in self.events():
            job = _after(job, event)
        return job


def _after(job: Job, event: JobEvent) -> Job:
    """Return what *event* makes of *job*."""
    job = replace(job, last_sequence=event.sequence, phase=event.phase or job.phase)
    report = job.report
    match event.payload:
        case JobState() as state:
            now = datetime.now(UTC)
            ends = {"reason": event.message, "end_time": now} if state.is_over else {"start_time": now}
            return replace(job, state=state, **ends)
        case ScoreMeasured(figure="protected" | "retained" | "new" as figure, moment="before" | "after" as moment) as s:
            before = getattr(report, figure) or Comparison(metric=s.metric, examples=s.examples)
            measured: dict[str, Any] = {figure: replace(before, **{moment: s.value})}
            return replace(job, report=replace(report, **measured))
        case Verdict() as verdict:
            return replace(job, report=replace(report, verdict=verdict))
        case Published(checkpoint_id=checkpoint_id):
            return replace(job, candidate_checkpoint_id=checkpoint_id)
        case PhaseEnded(seconds=seconds):
            end = event.time or datetime.now(UTC)
            timing = PhaseTiming(phase=event.phase, start_time=end - timedelta(seconds=seconds), end_time=end)
            return replace(job, phases=(*job.phases, timing))
    return job

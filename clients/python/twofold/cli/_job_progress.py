"""The state of a job as its events describe it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from twofold._types.job_events import JobEvent, PhaseEnded, ScoreMeasured, StepProgress
from twofold._types.job_report import JobReport, ScoreChange, Verdict
from twofold._types.jobs import Job, JobState

SCORE_TITLES: Mapping[str, str] = {
    "protected": "protected task",
    "retained": "retained labels",
    "new": "new data",
}
"""The scores of a job report that are shown, with their titles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """A job after some of its events; *phase_started_at* is None between phases."""

    job: Job
    phase: str = ""
    phase_started_at: datetime | None = None
    completed_phases: tuple[tuple[str, float], ...] = ()
    step: StepProgress | None = None
    report: JobReport = field(default_factory=JobReport)
    message: str = ""

    def apply(self, event: JobEvent) -> "JobProgress":
        """Return the state after *event*."""
        after = replace(self, message=event.message or self.message)
        if event.phase and event.phase != self.phase:
            started_at = event.time or datetime.now(UTC)
            after = replace(self, message=event.message, phase=event.phase, phase_started_at=started_at)
        match event.payload:
            case JobState() as state:
                return replace(after, job=replace(after.job, state=state))
            case StepProgress() as step:
                return replace(after, step=step)
            case PhaseEnded(seconds=seconds):
                completed = (*after.completed_phases, (event.phase, seconds))
                return replace(after, completed_phases=completed, phase_started_at=None)
            case Verdict() as verdict:
                return replace(after, report=replace(after.report, verdict=verdict))
            case ScoreMeasured() as score if score.figure in SCORE_TITLES and score.moment in {"before", "after"}:
                return replace(after, report=_with_score(after.report, score))
        return after


def _with_score(report: JobReport, score: ScoreMeasured) -> JobReport:
    comparison: ScoreChange = getattr(report, score.figure) or ScoreChange()
    comparison = replace(comparison, metric=score.metric, examples=score.examples)
    if score.moment == "before":
        comparison = replace(comparison, before=score.value)
    else:
        comparison = replace(comparison, after=score.value)
    match score.figure:
        case "protected":
            return replace(report, protected=comparison)
        case "retained":
            return replace(report, retained=comparison)
    return replace(report, new=comparison)

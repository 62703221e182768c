"""Prometheus metrics of adaptation jobs."""

from __future__ import annotations

from twofold_checkpoint.protocol.events import ScoreMeasured
from twofold_checkpoint.protocol.job import PHASES

from twofold_server.jobs.model import EventRecord, Job, JobState, PhaseEnded, StateEntered
from twofold_server.observability.metrics import Metrics


class JobMetrics:
    """Update the adaptation metrics from the event records of jobs."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._scored = ""

    def set_queued(self, count: int) -> None:
        """Set the number of queued jobs."""
        self._metrics.jobs_queued.set(count)

    def observe(self, job: Job, records: tuple[EventRecord, ...]) -> None:
        """Update the metrics with newly recorded events of a job."""
        for record in records:
            match record.event:
                case StateEntered(state=JobState.RUNNING):
                    self._metrics.jobs_running.set(1)
                    self._metrics.job_start.set(record.time.timestamp())
                case StateEntered(state=state, lost=lost):
                    if state.is_over:
                        self._metrics.jobs.labels(state.value).inc()
                    self._metrics.job_restarts.inc(lost)
                    if job.started:
                        self._metrics.jobs_running.set(0)
                        self._metrics.job_start.set(0)
                case PhaseEnded(seconds=seconds):
                    self._metrics.job_phase_seconds.labels(_bounded(record.phase)).observe(seconds)
                case ScoreMeasured(figure="protected" | "retained" | "new", moment="before" | "after"):
                    self._show_score(job.id, record.event)

    def _show_score(self, job_id: str, score: ScoreMeasured) -> None:
        if self._scored != job_id:  # Scores of two jobs must not be mixed.
            self._metrics.score.clear()
            self._scored = job_id
        self._metrics.score.labels(score.figure, score.moment).set(score.value)


def _bounded(phase: str) -> str:
    """Map unknown phase names to "other", so that the label set stays bounded."""
    return phase if phase in PHASES else "other"

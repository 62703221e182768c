"""A finished job as a trace."""

from __future__ import annotations

from twofold_server.jobs.model import Job, JobState
from twofold_server.observability.tracing import JOB_SPAN, FinishedSpan


def job_span(job: Job) -> FinishedSpan:
    """Return the span of a finished job with its phases as children, linked to the call that submitted it.

    Leaves out the job's reason, which may quote user text.
    """
    ended_at = job.ended or job.created
    wait = FinishedSpan(name="wait", started_at=job.created, ended_at=job.started or ended_at)
    phases = (
        FinishedSpan(name=phase.name, started_at=phase.started, ended_at=phase.ended or ended_at)
        for phase in job.phases
    )
    attributes = {
        "id": job.id,
        "state": job.state.value,
        "head": job.spec.request.head,
        "freeze": job.spec.request.freeze,
        "base": job.base,
        "candidate": job.candidate,
        "verdict": job.report.verdict or "",
        "losses": job.restarts,
    }
    return FinishedSpan(
        name=JOB_SPAN,
        started_at=job.created,
        ended_at=ended_at,
        attributes={f"twofold.job.{name}": value for name, value in attributes.items() if value},
        error=job.state.value if job.state is JobState.FAILED else "",
        linked_traceparent=job.traceparent,
        children=(wait, *phases),
    )

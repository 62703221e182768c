"""Outcomes of a job, each a state and a reason. Pure functions."""

from __future__ import annotations

from twofold_checkpoint.protocol.events import Finished

from twofold_server.jobs.model import CANCELLED, Job, JobState, StateEntered, TrainerDied

_DEFAULTS = {
    "succeeded": "The job succeeded.",
    "rejected": "The gate rejected the candidate.",
    "failed": "The trainer failed without a reason.",
    "cancelled": "The trainer was stopped by another process.",
}
MAX_REASON = 2000
STOPPED = StateEntered(
    state=JobState.QUEUED, reason="The server stopped while the job was running; the job resumes when a server starts."
)


def final_state(
    job: Job, last: Finished | TrainerDied, *, cancelled: bool, stopping: bool, attempts: int
) -> StateEntered:
    """Return the final state of a job, given the trainer's last event and the server's requests to cancel or stop it.

    A job whose trainer was killed from outside is queued again until it has used its *attempts*.
    """
    if cancelled:
        return CANCELLED
    if isinstance(last, TrainerDied) or last.outcome == "cancelled":
        if stopping:
            return STOPPED
        return requeue_or_fail(job, last.reason.strip()[:MAX_REASON] or _DEFAULTS["cancelled"], attempts)
    reason = last.reason.strip()[:MAX_REASON] or _DEFAULTS[last.outcome]
    return StateEntered(state=JobState(last.outcome), reason=reason)


def requeue_or_fail(job: Job, reason: str, attempts: int) -> StateEntered:
    """Requeue a job that lost its trainer or server, or fail it once it has used its *attempts*."""
    number = job.restarts + 1
    if number < attempts:
        message = f"{reason} The job will resume: attempt {number + 1} of {attempts}."
        return StateEntered(state=JobState.QUEUED, reason=message, lost=True)
    attempt_note = f" That was attempt {number} of {attempts}." if attempts > 1 else ""
    candidate_note = f" {job.candidate} was published and waits for PromoteCheckpoint." if job.candidate else ""
    return StateEntered(state=JobState.FAILED, reason=f"{reason}{attempt_note}{candidate_note}")


def conclude_after_crash(job: Job, current: str | None, attempts: int) -> StateEntered:
    """Return the state of a job whose server died. A candidate that is already current counts as swapped in."""
    if job.candidate and job.spec.promote == "auto" and job.candidate == current:
        reason = f"{job.candidate} became current just before the server died, and is live since the restart."
        return StateEntered(state=JobState.SUCCEEDED, reason=reason)
    return requeue_or_fail(job, "The server died while the job was running.", attempts)


def already_published(candidate: str) -> StateEntered:
    """Return success for a job whose trainer published before the job was interrupted."""
    return StateEntered(
        state=JobState.SUCCEEDED,
        reason=f"Published {candidate}, which had passed the gate before the job was interrupted.",
    )


def not_promoted(candidate: str, reason: str) -> StateEntered:
    """Return failure for a job whose candidate passed the gate but could not go live."""
    message = f"{candidate} was published but is not live: {reason.rstrip('.')}; the old checkpoint stays live."
    return StateEntered(state=JobState.FAILED, reason=message)


def rejected_in_shadow(candidate: str, message: str) -> StateEntered:
    """Return rejection for a job whose candidate passed the gate but failed the shadow test."""
    reason = f"{candidate} passed the gate but failed the shadow test: {message}; the old checkpoint stays live."
    return StateEntered(state=JobState.REJECTED, reason=reason)


def base_changed(base: str, current: str | None) -> str:
    """Return the reason not to promote automatically: the gate compared the candidate with a base that is no longer current."""
    return (
        f"the current checkpoint changed from {base} to {current} during training, but the gate compared it with {base}; "
        'promote it with PromoteCheckpoint("candidate"), or adapt again'
    )

"""How a job ends. Pure functions: every ending has a state and a sentence."""

from __future__ import annotations

from twofold_checkpoint.events import Finished

from twofold_server.jobs import JobState, JobView, StateEntered

_DEFAULTS = {
    "succeeded": "The trainer did what was asked.",
    "rejected": "The gate refused the candidate.",
    "failed": "The trainer failed and did not say why.",
    "cancelled": "The trainer was stopped from outside.",
}
MAX_REASON = 2000
STOPPED = "The server was stopped while the job ran; submit it again."


def conclude(last: Finished, *, cancelled: bool, stopping: bool) -> StateEntered:
    """Turn the trainer's last word into the job's, given what the server asked of it in the meantime."""
    if cancelled:
        return StateEntered(state=JobState.CANCELLED, reason="CancelJob was called while the job ran.")
    if stopping:
        return StateEntered(state=JobState.FAILED, reason=STOPPED)
    reason = last.reason.strip()[:MAX_REASON] or _DEFAULTS[last.outcome]
    # CANCELLED means that a caller asked for it; a trainer that somebody else stopped has failed.
    state = JobState.FAILED if last.outcome == "cancelled" else JobState(last.outcome)
    return StateEntered(state=state, reason=reason)


def conclude_after_crash(view: JobView, current: str | None) -> StateEntered:
    """End a job that ran when its server died. A candidate that is current by now has been swapped in."""
    if view.candidate and view.order.promote == "auto" and view.candidate == current:
        reason = (
            f"{view.candidate} was made current just before the server died; it answers since the server came back."
        )
        return StateEntered(state=JobState.SUCCEEDED, reason=reason)
    left = f" {view.candidate} was published and waits for PromoteCheckpoint." if view.candidate else ""
    return StateEntered(state=JobState.FAILED, reason=f"The server died while the job ran.{left}")


def not_promoted(candidate: str, reason: str) -> StateEntered:
    """End a job whose candidate passed the gate and could not be made live."""
    told = f"{candidate} was published but is not live: {reason.rstrip('.')}; the old checkpoint serves on."
    return StateEntered(state=JobState.FAILED, reason=told)


def refused_in_shadow(candidate: str, told: str) -> StateEntered:
    """End a job whose candidate passed the gate and was bad on live texts."""
    reason = f"{candidate} passed the gate, but in shadow, on live texts, {told}; the old checkpoint serves on."
    return StateEntered(state=JobState.REJECTED, reason=reason)


def overtaken(base: str, current: str | None) -> str:
    """Say why a candidate is not promoted on its own: the gate compared it with what is not current any more."""
    return (
        f"current moved from {base} to {current} while it was trained, and the gate has compared it with {base} only; "
        'promote it with PromoteCheckpoint("candidate"), or adapt again'
    )

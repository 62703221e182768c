"""How a job ends. Pure functions: every ending has a state and a sentence."""

from __future__ import annotations

from twofold_checkpoint.protocol.events import Finished

from twofold_server.jobs.model import CANCELLED, JobState, JobView, StateEntered, TrainerDied

_DEFAULTS = {
    "succeeded": "The trainer did what was asked.",
    "rejected": "The gate refused the candidate.",
    "failed": "The trainer failed and did not say why.",
    "cancelled": "The trainer was stopped from outside.",
}
MAX_REASON = 2000
STOPPED = StateEntered(
    state=JobState.QUEUED, reason="The server was stopped while the job ran; it goes on when a server is back."
)


def final_state(
    view: JobView, last: Finished | TrainerDied, *, cancelled: bool, stopping: bool, attempts: int
) -> StateEntered:
    """Turn the trainer's last word into the job's, given what the server asked of it in the meantime.

    A job whose trainer was ended by somebody else waits for another one, unless it has had so many *attempts*.
    """
    if cancelled:
        return CANCELLED
    if isinstance(last, TrainerDied) or last.outcome == "cancelled":
        if stopping:
            return STOPPED
        return try_again(view, last.reason.strip()[:MAX_REASON] or _DEFAULTS["cancelled"], attempts)
    reason = last.reason.strip()[:MAX_REASON] or _DEFAULTS[last.outcome]
    return StateEntered(state=JobState(last.outcome), reason=reason)


def try_again(view: JobView, reason: str, attempts: int) -> StateEntered:
    """Let a job that lost its trainer or its server wait for another one, or end it if there were *attempts* already."""
    number = view.losses + 1
    if number < attempts:
        message = f"{reason} The job goes on from what it had kept: attempt {number + 1} of {attempts}."
        return StateEntered(state=JobState.QUEUED, reason=message, lost=True)
    counted = f" That was attempt {number} of {attempts}." if attempts > 1 else ""
    candidate_note = f" {view.candidate} was published and waits for PromoteCheckpoint." if view.candidate else ""
    return StateEntered(state=JobState.FAILED, reason=f"{reason}{counted}{candidate_note}")


def conclude_after_crash(view: JobView, current: str | None, attempts: int) -> StateEntered:
    """Decide about a job that ran when its server died. A candidate that is current by now has been swapped in."""
    if view.candidate and view.order.promote == "auto" and view.candidate == current:
        reason = (
            f"{view.candidate} was made current just before the server died; it answers since the server came back."
        )
        return StateEntered(state=JobState.SUCCEEDED, reason=reason)
    return try_again(view, "The server died while the job ran.", attempts)


def already_published(candidate: str) -> StateEntered:
    """End a job whose trainer had done its work before the job was broken off."""
    return StateEntered(
        state=JobState.SUCCEEDED, reason=f"Published {candidate}: it had passed the gate when the job was broken off."
    )


def not_promoted(candidate: str, reason: str) -> StateEntered:
    """End a job whose candidate passed the gate and could not be made live."""
    message = f"{candidate} was published but is not live: {reason.rstrip('.')}; the old checkpoint serves on."
    return StateEntered(state=JobState.FAILED, reason=message)


def rejected_in_shadow(candidate: str, message: str) -> StateEntered:
    """End a job whose candidate passed the gate and was bad on live texts."""
    reason = f"{candidate} passed the gate, but in shadow, on live texts, {message}; the old checkpoint serves on."
    return StateEntered(state=JobState.REJECTED, reason=reason)


def base_changed(base: str, current: str | None) -> str:
    """Say why a candidate is not promoted on its own: the gate compared it with what is not current any more."""
    return (
        f"current moved from {base} to {current} while it was trained, and the gate has compared it with {base} only; "
        'promote it with PromoteCheckpoint("candidate"), or adapt again'
    )

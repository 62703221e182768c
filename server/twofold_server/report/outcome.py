"""How a job ended: one word, and the tone of its badge."""

from __future__ import annotations

from dataclasses import dataclass

from twofold_checkpoint.protocol.events import VerdictName

from twofold_server.jobs.model import JobState


@dataclass(frozen=True, slots=True)
class Outcome:
    """A word such as PASS, and its tone: the CSS class of its colour."""

    word: str
    tone: str


def outcome(state: JobState, verdict: VerdictName | None, *, validate_only: bool, rolled_back: bool = False) -> Outcome:
    """Summarise a job's state and verdict."""
    match state, verdict:
        case ((JobState.QUEUED | JobState.CANCELLED), _):
            return Outcome(state.value.upper(), "quiet")
        case JobState.RUNNING, _:
            return Outcome("RUNNING", "running")
        case JobState.FAILED, _:
            return Outcome("FAILED", "bad")
        case _, "pass":
            return Outcome("ROLLED BACK", "bad") if rolled_back else Outcome("PASS", "good")
        case _, "inconclusive":
            return Outcome("INCONCLUSIVE", "unsure")
        case JobState.REJECTED, _:
            return Outcome("REJECTED", "bad")
    return Outcome("VALID" if validate_only else "MEASURED", "quiet")

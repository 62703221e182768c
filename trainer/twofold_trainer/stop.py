"""Two reasons to end a training early: somebody said so, or its time is over."""

from __future__ import annotations

import time

from twofold_trainer.errors import CancelledError


class StopSignal:
    """Hold the request to cancel, which a signal handler sets, and the deadline in monotonic seconds."""

    def __init__(self) -> None:
        self.cancelled = False
        self._deadline: float | None = None

    def cancel(self) -> None:
        """Ask the training to end at its next check."""
        self.cancelled = True

    def set_deadline(self, seconds: float | None) -> None:
        """Let the time be over after *seconds*; None sets no limit."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raise CancelledError if somebody asked to stop."""
        if self.cancelled:
            raise CancelledError("the job was cancelled; the store is as it was")

    @property
    def is_past_deadline(self) -> bool:
        """Whether the deadline has passed: training stops, and the best state so far is judged."""
        return self._deadline is not None and time.monotonic() >= self._deadline

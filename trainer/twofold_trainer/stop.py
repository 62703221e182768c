"""Early end of a training: cancellation and the deadline."""

from __future__ import annotations

import time

from twofold_trainer.errors import CancelledError


class StopSignal:
    """A cancellation flag, set by a signal handler, and an optional deadline in monotonic seconds."""

    def __init__(self) -> None:
        self.cancelled = False
        self._deadline: float | None = None

    def cancel(self) -> None:
        """Cancel the training at its next check."""
        self.cancelled = True

    def set_deadline(self, seconds: float | None) -> None:
        """Set the deadline to *seconds* from now, or to none."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raise CancelledError if the training was cancelled."""
        if self.cancelled:
            raise CancelledError("the job was cancelled; the store is unchanged")

    @property
    def is_past_deadline(self) -> bool:
        """Whether the deadline has passed. Training then stops, and the gate evaluates the best state so far."""
        return self._deadline is not None and time.monotonic() >= self._deadline

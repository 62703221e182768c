"""Progress events of training, with the estimated remaining time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from twofold_checkpoint.protocol.events import StepCompleted

REPORT_SECONDS = 1.0
"""Seconds between progress events."""


@dataclass(slots=True)
class ProgressReporter:
    """Counts steps over all stages and estimates the remaining time."""

    total: int
    step: int = 0
    _skipped: int = 0
    _losses: list[float] = field(default_factory=list)
    _started_at: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    def skip(self, steps: int) -> None:
        """Count steps that an earlier trainer process already took."""
        self.step += steps
        self._skipped += steps

    def advance(self, stage: str, loss: float) -> StepCompleted | None:
        """Count a step; return an event if REPORT_SECONDS have passed since the last one."""
        self.step += 1
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._reported < REPORT_SECONDS:
            return None
        self._reported = now
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        remaining = (now - self._started_at) / (self.step - self._skipped) * max(0, self.total - self.step)
        return StepCompleted(
            stage=stage, step=self.step, total_steps=self.total, loss=mean, remaining_seconds=remaining
        )

"""The slowdown of serving by a training job on the same machine."""

from __future__ import annotations

from collections.abc import Callable

from twofold_server.observability.metrics import Metrics

_WEIGHT = 0.02
"""Weight of the newest batch in an exponential mean over about fifty batches."""


class Interference:
    """Tracks the mean batch time with and without a job, and exports their ratio."""

    def __init__(self, metrics: Metrics, is_job_running: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._is_job_running = is_job_running
        self._means: dict[bool, float] = {}

    def batch_finished(self, checkpoint_id: str, *, seconds: float | None, failed: bool) -> None:  # noqa: ARG002 -- a BatchListener.
        """Update the means with the time of a forward pass that did not fail."""
        if seconds is None:
            return
        is_running = self._is_job_running()
        mean = self._means.get(is_running, seconds)
        self._means[is_running] = mean + _WEIGHT * (seconds - mean)
        if len(self._means) == 2:
            self._metrics.interference.set(self._means[True] / self._means[False])

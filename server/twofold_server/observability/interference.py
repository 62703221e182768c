"""How much a training job beside the server slows it down."""

from __future__ import annotations

from collections.abc import Callable

from twofold_server.observability.metrics import Metrics

_WEIGHT = 0.02
"""Share of the newest batch in a mean: about the last fifty batches count."""


class Interference:
    """Keep the mean batch time with and without a job, and export their ratio."""

    def __init__(self, metrics: Metrics, job_runs: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._job_runs = job_runs
        self._means: dict[bool, float] = {}

    def batch_finished(self, checkpoint_id: str, *, seconds: float | None, failed: bool) -> None:  # noqa: ARG002 -- a BatchListener.
        """Update the means with the time of a forward pass that did not fail."""
        if seconds is None:
            return
        busy = self._job_runs()
        mean = self._means.get(busy, seconds)
        self._means[busy] = mean + _WEIGHT * (seconds - mean)
        if len(self._means) == 2:
            self._metrics.interference.set(self._means[True] / self._means[False])

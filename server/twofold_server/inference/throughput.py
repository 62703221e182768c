"""Estimates of the throughput of passes and of waiting times."""

from __future__ import annotations

_WEIGHT = 0.2
"""Weight of the newest pass in the exponential moving average."""


class ThroughputEstimator:
    """Estimates how many seconds passes take, from the throughput of earlier passes.

    The cost model of a pass is linear: its tokens plus *pass_overhead_tokens*.
    """

    def __init__(self, passes: int, tokens_per_second: float = 10_000.0) -> None:
        self._passes = passes
        self.tokens_per_second = tokens_per_second
        """Throughput of one thread; a default until the first pass ends."""
        self._running: dict[int, float] = {}
        """Estimated seconds of each running pass, by thread."""

    def begin(self, thread: int, tokens: int, pass_overhead_tokens: int) -> None:
        """Record that a thread starts a pass."""
        self._running[thread] = (tokens + pass_overhead_tokens) / self.tokens_per_second

    def end(self, thread: int) -> None:
        """Record that the pass of a thread ended, whether it succeeded or failed."""
        self._running.pop(thread, None)

    def update(self, tokens: int, pass_overhead_tokens: int, seconds: float) -> None:
        """Add a finished pass to the moving average."""
        self.tokens_per_second += _WEIGHT * (
            (tokens + pass_overhead_tokens) / max(seconds, 1e-6) - self.tokens_per_second
        )

    def estimate_seconds(self, tokens: int) -> float:
        """Return the estimated seconds until the running passes and *tokens* more are done.

        Running passes count in full, as if they had just started. Capacity then becomes free in steps, when a pass starts, and
        not gradually: on a core that also computes, requests admitted together cost half as much to admit.
        """
        return (sum(tuple(self._running.values())) + tokens / self.tokens_per_second) / self._passes

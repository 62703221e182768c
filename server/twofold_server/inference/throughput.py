"""How fast passes are, and with that, how long what waits will take."""

from __future__ import annotations

_WEIGHT = 0.2
"""Of the newest pass in the mean of their speeds."""


class ThroughputEstimator:
    """Guess from the passes before how long others will take, in seconds.

    A pass is thought to cost so much for each of its tokens, and beside them as much as *pass_overhead_tokens* more.
    """

    def __init__(self, passes: int, tokens_per_second: float = 10_000.0) -> None:
        self._passes = passes
        self.tokens_per_second = tokens_per_second
        """Of one pass; a guess until the first one ends."""
        self._running: dict[int, float] = {}
        """What each pass that runs is thought to take, by its thread."""

    def begin(self, thread: int, tokens: int, pass_overhead_tokens: int) -> None:
        """Note that a thread begins a pass."""
        self._running[thread] = (tokens + pass_overhead_tokens) / self.tokens_per_second

    def end(self, thread: int) -> None:
        """Note that a thread's pass is over, whatever came of it."""
        self._running.pop(thread, None)

    def update(self, tokens: int, pass_overhead_tokens: int, seconds: float) -> None:
        """Take a pass into the mean."""
        self.tokens_per_second += _WEIGHT * (
            (tokens + pass_overhead_tokens) / max(seconds, 1e-6) - self.tokens_per_second
        )

    def estimate_seconds(self, tokens: int) -> float:
        """Return how long so many tokens will take, and before them the passes that run, as if those had just begun.

        Room for more is then there all at once, when a pass begins, and not a little at every moment: a core that also
        computes lets those in at half the cost who come in together.
        """
        return (sum(tuple(self._running.values())) + tokens / self.tokens_per_second) / self._passes

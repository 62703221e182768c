"""So many requests a second, and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

T = TypeVar("T")

_SLACK = 1e-6
"""Seconds. Rounding of sums must not produce a retry delay of a billionth of a second."""


class RateLimit:
    """Let *rate* requests a second through, on average: after a rest, those of one second may come at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._apart = 1 / rate
        self._ahead = max(0.0, 1.0 - self._apart) + _SLACK
        self._due = 0.0  # When the next request would come if all came evenly.
        self._clock = clock

    def take(self) -> float:
        """Let a request through and return 0, or return the seconds until there is room for it."""
        now = self._clock()
        wait = self._due - self._ahead - now
        if wait > 0:
            return wait
        self._due = max(self._due, now) + self._apart
        return 0.0

    def reserve(self) -> float:
        """Return the seconds after which a request may go on; its place is taken now."""
        now = self._clock()
        wait = max(0.0, self._due - self._ahead - now)
        self._due = max(self._due, now) + self._apart
        return wait

    async def pace(self, requests: AsyncIterator[T]) -> AsyncGenerator[T]:
        """Hand the requests of a stream on as there is room for them: a stream waits. The first came with its call."""
        first = True
        async for request in requests:
            if not first:
                await asyncio.sleep(self.reserve())
            first = False
            yield request

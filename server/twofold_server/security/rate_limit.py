"""A rate limit, by the generic cell rate algorithm (GCRA)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

T = TypeVar("T")

_SLACK = 1e-6
"""Seconds. Rounding of sums must not produce a retry delay of a billionth of a second."""


class RateLimit:
    """Admits *rate* requests per second on average. After a pause, the requests of one second may come at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._interval = 1 / rate
        self._burst = max(0.0, 1.0 - self._interval) + _SLACK
        self._next_allowed = 0.0  # The theoretical arrival time of the next request.
        self._clock = clock

    def take(self) -> float:
        """Admit a request and return 0, or return the seconds until it would be admitted."""
        now = self._clock()
        wait = self._next_allowed - self._burst - now
        if wait > 0:
            return wait
        self._next_allowed = max(self._next_allowed, now) + self._interval
        return 0.0

    def reserve(self) -> float:
        """Reserve a request, and return the seconds after which it may continue."""
        now = self._clock()
        wait = max(0.0, self._next_allowed - self._burst - now)
        self._next_allowed = max(self._next_allowed, now) + self._interval
        return wait

    async def throttle(self, requests: AsyncIterator[T]) -> AsyncGenerator[T]:
        """Yield the requests of a stream at the allowed rate. The first one was admitted with the call."""
        first = True
        async for request in requests:
            if not first:
                await asyncio.sleep(self.reserve())
            first = False
            yield request

"""A job gives way to serving: it is paused while answers take too long, and goes on once they do not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Time between two looks."""
WINDOW_SECONDS = 5.0
"""Requests that ended so long ago still count."""
FEWEST = 20
"""With fewer requests in the window, one slow one would decide."""
REST_SECONDS = 5.0
"""How long the first pause of a job lasts at least. Each further one rests twice as long, or the job would be paused and
resumed for ever where serving is only good enough without it."""
LONGEST_REST_SECONDS = 60.0


class PreemptibleJobs(Protocol):
    """Whoever runs jobs."""

    @property
    def running_job(self) -> str:
        """The id of the job that runs, paused or not; empty if none does."""

    async def pause(self, reason: str) -> None:
        """Hold the running job where it is."""

    async def resume(self, reason: str) -> None:
        """Let it go on."""


class JobPreemptor:
    """Watch the latency of requests, and pause and resume the running job by its 95th percentile.

    request_finished() may be called on any thread; run() looks once a second until it is cancelled.
    """

    def __init__(
        self, jobs: PreemptibleJobs, limit_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._limit = limit_seconds
        self._clock = clock
        self._ended: deque[tuple[float, float]] = deque()
        """When requests ended, and how long they had taken."""
        self._job = ""
        self._paused_at: float | None = None
        self._min_pause_seconds = REST_SECONDS

    def request_admitted(self, texts: Sequence[str]) -> None:
        """Ignore the texts of requests."""

    def request_finished(self, seconds: float) -> None:
        """Note how long a request took, or waited until its caller gave up at its deadline."""
        self._ended.append((self._clock(), seconds))

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except (
                Exception
            ):  # The job may have ended in between, or the disk be full. Serving must not suffer from it.
                log.exception("the running job could not be paused or resumed")

    async def look(self) -> None:
        """Pause the running job, resume it, or leave it as it is."""
        slow = self._percentile()
        if self._jobs.running_job != self._job:  # Another one, which was never paused.
            self._job, self._paused_at, self._min_pause_seconds = self._jobs.running_job, None, REST_SECONDS
        if not self._job:
            return
        if self._paused_at is None:
            if slow > self._limit:
                self._paused_at = self._clock()
                await self._jobs.pause(
                    f"Paused: the 95th percentile of latency is {1000 * slow:.0f} ms, and {1000 * self._limit:.0f} ms is the "
                    "most that a job may run beside."
                )
        elif slow <= self._limit and (paused := self._clock() - self._paused_at) >= self._min_pause_seconds:
            self._paused_at, self._min_pause_seconds = None, min(2 * self._min_pause_seconds, LONGEST_REST_SECONDS)
            await self._jobs.resume(
                f"Resumed after {paused:.0f} s: the 95th percentile of latency is {1000 * slow:.0f} ms."
            )

    def _percentile(self) -> float:
        """Return the 95th percentile of latency over the window, or zero where too few requests say anything."""
        begin = self._clock() - WINDOW_SECONDS
        while self._ended and self._ended[0][0] < begin:
            self._ended.popleft()
        latencies = sorted(seconds for _, seconds in self._ended)
        return latencies[int(0.95 * len(latencies))] if len(latencies) >= FEWEST else 0.0

"""Preemption of jobs by serving: the running job is paused while request latency is too high."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Interval between latency checks."""
WINDOW_SECONDS = 5.0
"""Length of the sliding window of finished requests."""
FEWEST = 20
"""Minimum number of requests in the window; with fewer, a single slow request would decide."""
REST_SECONDS = 5.0
"""Minimum length of a job's first pause. It doubles with each pause, so that a job whose load alone exceeds the limit is
not paused and resumed all the time."""
LONGEST_REST_SECONDS = 60.0


class PreemptibleJobs(Protocol):
    """A job runner whose running job can be paused."""

    @property
    def running_job(self) -> str:
        """Id of the running job, paused or not; empty without one."""

    async def pause(self, reason: str) -> None:
        """Pause the running job."""

    async def resume(self, reason: str) -> None:
        """Resume the running job."""


class JobPreemptor:
    """Pauses and resumes the running job by the 95th percentile of request latency.

    request_finished() is thread-safe; run() checks the latency once a second until cancelled.
    """

    def __init__(
        self, jobs: PreemptibleJobs, limit_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._limit = limit_seconds
        self._clock = clock
        self._ended: deque[tuple[float, float]] = deque()
        """End time and duration, in seconds, of recent requests."""
        self._job = ""
        self._paused_at: float | None = None
        self._min_pause_seconds = REST_SECONDS

    def request_finished(self, seconds: float) -> None:
        """Record the duration of a request, or its wait until the deadline expired."""
        self._ended.append((self._clock(), seconds))

    async def run(self) -> None:
        """Check the latency periodically until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:  # For example, the job has just ended or the disk is full. Serving must continue.
                log.exception("the running job could not be paused or resumed")

    async def look(self) -> None:
        """Pause or resume the running job if the latency requires it."""
        slow = self._percentile()
        if self._jobs.running_job != self._job:  # A new job has not been paused yet.
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
        """Return the 95th percentile of latency in seconds over the window, or 0 with fewer than FEWEST requests."""
        begin = self._clock() - WINDOW_SECONDS
        while self._ended and self._ended[0][0] < begin:
            self._ended.popleft()
        latencies = sorted(seconds for _, seconds in self._ended)
        return latencies[int(0.95 * len(latencies))] if len(latencies) >= FEWEST else 0.0

"""Preemption of jobs by serving: the running job is paused while request latency is too high."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""Interval between latency checks."""
WINDOW_SECONDS = 5.0
"""Length of the sliding window of finished requests."""
MIN_REQUESTS = 20
"""Minimum number of requests in the window; with fewer, a single slow request would decide."""
MIN_PAUSE_SECONDS = 5.0
"""Minimum length of a job's first pause. It doubles with each pause, so that a job whose load alone exceeds the limit is
not paused and resumed all the time."""
MAX_PAUSE_SECONDS = 60.0


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
        self._finished: deque[tuple[float, float]] = deque()
        """End time and duration, in seconds, of recent requests."""
        self._job = ""
        self._paused_at: float | None = None
        self._min_pause = MIN_PAUSE_SECONDS

    def request_finished(self, seconds: float) -> None:
        """Record the duration of a request, or its wait until the deadline expired."""
        self._finished.append((self._clock(), seconds))

    async def run(self) -> None:
        """Check the latency periodically until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.check()
            except Exception:  # For example, the job has just ended or the disk is full. Serving must continue.
                log.exception("the running job could not be paused or resumed")

    async def check(self) -> None:
        """Pause or resume the running job if the latency requires it."""
        latency = self._percentile()
        if self._jobs.running_job != self._job:  # A new job has not been paused yet.
            self._job, self._paused_at, self._min_pause = self._jobs.running_job, None, MIN_PAUSE_SECONDS
        if not self._job:
            return
        if self._paused_at is None:
            if latency > self._limit:
                self._paused_at = self._clock()
                await self._jobs.pause(
                    f"Paused: the 95th percentile of request latency is {1000 * latency:.0f} ms, above the limit of "
                    f"{1000 * self._limit:.0f} ms."
                )
        elif latency <= self._limit and (paused := self._clock() - self._paused_at) >= self._min_pause:
            self._paused_at, self._min_pause = None, min(2 * self._min_pause, MAX_PAUSE_SECONDS)
            await self._jobs.resume(
                f"Resumed after {paused:.0f} s: the 95th percentile of request latency is {1000 * latency:.0f} ms."
            )

    def _percentile(self) -> float:
        """Return the 95th percentile of latency in seconds over the window, or 0 with fewer than FEWEST requests."""
        window_start = self._clock() - WINDOW_SECONDS
        while self._finished and self._finished[0][0] < window_start:
            self._finished.popleft()
        latencies = sorted(seconds for _, seconds in self._finished)
        return latencies[int(0.95 * len(latencies))] if len(latencies) >= MIN_REQUESTS else 0.0

"""Server heartbeats, and the takeover of jobs whose server died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.store import Store

from twofold_server.adaptation.launchers.protocol import Launcher
from twofold_server.adaptation.outcomes import conclude_after_crash
from twofold_server.errors import ServerError
from twofold_server.jobs.repository import JobRepository
from twofold_server.report.reporter import Reporter
from twofold_server.retention.cleanup import StaleFiles

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0
"""Heartbeat interval, and the longest delay before a server notices what other servers wrote."""


class Heartbeat:
    """Takes over the jobs of dead servers: once at start, then periodically if servers share a database.

    A job returns to the queue until it has used its *attempts*.
    *cancel* receives the id of each running job of this server that was cancelled through another server.
    """

    def __init__(
        self,
        *,
        store: Store,
        jobs: JobRepository,
        reporter: Reporter,
        stale_files: StaleFiles,
        launcher: Launcher,
        attempts: int,
        cancel: Callable[[str], None],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._reporter = reporter
        self._stale_files = stale_files
        self._launcher = launcher
        self._attempts = attempts
        self._cancel = cancel
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over orphaned jobs, and start the heartbeat if other servers share the jobs."""
        await self._take_over_orphans()
        if self._jobs.is_shared:
            self._task = asyncio.create_task(self._send(), name="heartbeat")

    async def stop(self) -> None:
        """Stop the heartbeat."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _send(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                await self._jobs.renew_lease()
                for job_id in await self._jobs.cancel_requested():
                    self._cancel(job_id)
                await self._take_over_orphans()
            except (ServerError, CheckpointError, OSError) as error:  # The next heartbeat may succeed.
                log.error("heartbeat failed", extra={"reason": str(error)})  # noqa: TRY400 -- no bug of ours.

    async def _take_over_orphans(self) -> None:
        for job in await self._jobs.abandoned():
            current = (await asyncio.to_thread(self._store.aliases)).current
            event = conclude_after_crash(job, current, self._attempts)
            log.warning("taking over an orphaned job", extra={"job": job.id, "reason": event.reason})
            await asyncio.to_thread(self._launcher.kill_orphan, job.id)
            taken = await self._jobs.take_over(job.id, event)  # None if another server was faster.
            if taken is not None and taken.state.is_over:
                await asyncio.to_thread(self._stale_files.remove_snapshots, job.id)
                await self._reporter.write(job.id)

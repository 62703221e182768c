"""Periodic removal of data beyond the retention limits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.store import Store

from twofold_server.config.settings import RetentionSettings
from twofold_server.errors import ServerError
from twofold_server.inference.slot import Slot
from twofold_server.jobs.directories import job_directory
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.metrics import Metrics
from twofold_server.retention.deletion import Deleter
from twofold_server.retention.policy import Retained, expired, needed_checkpoints
from twofold_server.versions.alias_changes import SERVER, Author

log = logging.getLogger(__name__)

PERIOD_SECONDS = 600.0


class GarbageCollector:
    """Removes checkpoints, jobs and data sets beyond the limits every ten minutes."""

    def __init__(
        self,
        *,
        settings: RetentionSettings,
        store: Store,
        slot: Slot,
        jobs: JobRepository,
        deleter: Deleter,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._slot = slot
        self._jobs = jobs
        self._deleter = deleter
        self._metrics = metrics

    @property
    def has_limits(self) -> bool:
        """Whether any retention limit is set."""
        return any((self._settings.keep_checkpoints, self._settings.keep_jobs, self._settings.keep_uploads))

    async def run(self) -> None:
        """Collect periodically until cancelled. Returns at once if no limit is set."""
        while self.has_limits:
            try:
                await self.collect()
            except Exception:  # A failed run must not stop later runs.
                log.exception("garbage collection failed")
            await asyncio.sleep(PERIOD_SECONDS)

    async def collect(self) -> None:
        """Remove everything beyond the limits. Failures are logged and retried in the next run."""
        for kind, find_expired, delete in (
            ("job", self._expired_jobs, self._delete_job),
            ("upload", self._expired_uploads, self._delete_upload),
            ("checkpoint", self._expired_checkpoints, self._delete_checkpoint),
        ):
            try:
                expired_ids = await find_expired()
            except (ServerError, CheckpointError, OSError) as error:
                log.warning("garbage collection failed", extra={"kind": kind, "reason": str(error)})
                continue
            for item_id in expired_ids:
                await self._remove(kind, item_id, delete)

    async def _remove(self, kind: str, item_id: str, delete: Callable[[str], Awaitable[None]]) -> None:
        try:
            await delete(item_id)
        except (ServerError, CheckpointError, OSError) as error:  # A new job may need it by now.
            log.warning("expired item could not be removed", extra={"kind": kind, kind: item_id, "reason": str(error)})
        else:
            self._metrics.collected.labels(kind).inc()
            log.info("expired item removed", extra={"kind": kind, kind: item_id})

    async def _expired_jobs(self) -> list[str]:
        if not self._settings.keep_jobs:
            return []
        finished = [Retained(job.id, job.ended.timestamp()) for job in await self._jobs.finished() if job.ended]
        return expired(finished, keep=self._settings.keep_jobs, needed=(), now=time.time())

    async def _delete_job(self, job_id: str) -> None:
        # Files first: after a partial failure the row remains, and the next run retries.
        await asyncio.to_thread(_remove_directory, self._store, job_directory(self._store.root, job_id))
        await self._jobs.delete(job_id)

    async def _expired_uploads(self) -> list[str]:
        directories = await asyncio.to_thread(_directories, self._store.root / "uploads")
        needed = {job.spec.upload_id for job in await self._jobs.unfinished()}
        return expired(directories, keep=self._settings.keep_uploads, needed=needed, now=time.time())

    async def _delete_upload(self, upload_id: str) -> None:
        async with self._jobs.base_lock:  # Blocks new jobs that would use the upload.
            if any(job.spec.upload_id == upload_id for job in await self._jobs.unfinished()):
                return
            await asyncio.to_thread(_remove_directory, self._store, self._store.root / "uploads" / upload_id)

    async def _expired_checkpoints(self) -> list[str]:
        directories = await asyncio.to_thread(_directories, self._store.root / "checkpoints")
        jobs, aliases = await self._jobs.unfinished(), await asyncio.to_thread(self._store.aliases)
        live = self._slot.live
        needed = needed_checkpoints(jobs, aliases, live.id if live else None)
        return expired(directories, keep=self._settings.keep_checkpoints, needed=needed, now=time.time())

    async def _delete_checkpoint(self, checkpoint_id: str) -> None:
        # The deleter checks again that nothing needs the checkpoint.
        await self._deleter.delete(checkpoint_id, Author(SERVER, "The store exceeded keep-checkpoints."))


def _directories(root: Path) -> list[Retained]:
    return [Retained(path.name, path.stat().st_mtime) for path in root.glob("*") if path.is_dir()]


def _remove_directory(store: Store, path: Path) -> None:
    """Remove a directory atomically."""
    if path.is_dir():
        with store.staging() as staging:
            path.rename(staging / path.name)

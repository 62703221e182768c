"""Deletion of unneeded checkpoints."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from twofold_checkpoint.errors import CheckpointInUseError
from twofold_checkpoint.store import Aliases, Store

from twofold_server.inference.slot import Slot
from twofold_server.jobs.model import Job
from twofold_server.jobs.repository import JobRepository
from twofold_server.retention.policy import required_checkpoints
from twofold_server.versions.alias_changes import Author

log = logging.getLogger(__name__)


class Deleter:
    """Deletes checkpoints of a store unless they are live or needed by a job."""

    def __init__(self, store: Store, slot: Slot, jobs: JobRepository) -> None:
        self._store = store
        self._slot = slot
        self._jobs = jobs

    async def delete(self, checkpoint_id: str, author: Author) -> None:
        """Delete a checkpoint. Raises CheckpointNotFoundError, or CheckpointInUseError that names the user."""
        async with self._jobs.base_lock:
            jobs = await self._jobs.unfinished()
            aliases = await asyncio.to_thread(self._store.aliases)
            live = self._slot.live
            if live is not None and live.id == checkpoint_id:
                raise CheckpointInUseError(f"{checkpoint_id} is live; promote another checkpoint before you delete it")
            if job := needed_by(checkpoint_id, jobs, aliases):
                raise CheckpointInUseError(
                    f"{job.state} job {job.id} needs {checkpoint_id}; cancel the job, or wait until it ends"
                )
            move = await asyncio.to_thread(self._store.delete, checkpoint_id)
            await self._jobs.record_alias_change(move, author)
        log.info("checkpoint deleted", extra={"checkpoint": checkpoint_id})


def needed_by(checkpoint_id: str, jobs: Iterable[Job], aliases: Aliases) -> Job | None:
    """Return the first of *jobs* that has the checkpoint as base or candidate, or None."""
    for job in jobs:
        if checkpoint_id in required_checkpoints(job, aliases):
            return job
    return None

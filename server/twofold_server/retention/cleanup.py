"""Removal of stale files: partial output of dead processes, and resume snapshots of finished jobs."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from twofold_checkpoint.protocol.job import SNAPSHOTS
from twofold_checkpoint.store import Store

from twofold_server.jobs.directories import job_directory
from twofold_server.retention.policy import GRACE_SECONDS

log = logging.getLogger(__name__)


class StaleFiles:
    """Removes stale files of a store. What cannot be removed is logged and retried at the next start or end of a job."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def remove_snapshots(self, job_id: str) -> None:
        """Remove the snapshots of a finished job."""
        _remove(job_directory(self._store.root, job_id) / SNAPSHOTS)

    def remove_partial_files(self, known: Collection[str], unfinished: Collection[str], *, exclusive: bool) -> None:
        """Remove partial files from staging and from the job directories, given the *known* and the *unfinished* job ids.

        Unless *exclusive*, recent files stay: another server or a call may be writing them.
        """
        try:
            self._store.remove_stale_staging()
            for directory in self._store.root.glob("jobs/*"):
                if directory.name in unfinished:
                    continue
                if directory.name not in known:
                    if exclusive or _is_old(directory):
                        _remove(directory)  # Its server died before it added the job.
                else:
                    _remove(directory / SNAPSHOTS)
                    for partial in directory.glob("*.new"):
                        if exclusive or _is_old(partial):
                            _remove(partial)
        except OSError as error:
            log.warning("stale files could not be removed", extra={"reason": str(error)})


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime >= GRACE_SECONDS


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    else:
        return
    log.info("stale file removed", extra={"path": path.name})

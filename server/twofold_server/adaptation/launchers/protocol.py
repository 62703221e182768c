"""Interface of trainer launchers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from twofold_checkpoint.protocol.events import Event
from twofold_checkpoint.protocol.job import TrainerJob

from twofold_server.jobs.model import TrainerDied


class Launcher(Protocol):
    """Runs trainers, for example as local processes or pods."""

    def launch(self, job: TrainerJob) -> AsyncGenerator[Event | TrainerDied, None]:
        """Start a trainer and yield its events.

        The last event is TrainerDied, or Finished from the trainer, or from the launcher if the trainer could not start.
        All trainer processes have ended when it arrives, or when the iterator is closed early.
        """

    def cancel(self, job_id: str) -> None:
        """Ask a launched trainer to stop, and kill it after a grace period. Returns at once; launch() then ends."""

    def set_paused(self, job_id: str, *, paused: bool) -> bool:
        """Suspend or resume a launched trainer, and return whether there is one. A suspended trainer can be cancelled."""

    def kill_orphan(self, job_id: str) -> None:
        """Kill the orphaned trainer of an earlier server, if any. Blocks."""

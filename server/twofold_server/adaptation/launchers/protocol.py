"""How a job gets a process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from twofold_checkpoint.protocol.events import Event
from twofold_checkpoint.protocol.job import Job

from twofold_server.jobs.model import TrainerDied


class Launcher(Protocol):
    """Run trainers somewhere: a process of this machine, an actor, a pod."""

    def launch(self, job: Job) -> AsyncGenerator[Event | TrainerDied, None]:
        """Start a trainer and yield its events.

        The last one is always Finished, the trainer's own or one that says why there is none, or Lost. Nothing of the
        trainer runs any more when it comes, or when the iterator is closed before.
        """

    def cancel(self, job_id: str) -> None:
        """Ask a launched trainer to stop, and stop it by force after a grace. Returns at once; launch() then ends."""

    def hold(self, job_id: str, *, held: bool) -> bool:
        """Stop a launched trainer where it is, or let it go on, and return whether there is one. It can be cancelled then."""

    def bury(self, job_id: str) -> None:
        """End what the launch of an earlier server has left running, if anything. Blocks."""

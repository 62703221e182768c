"""The kill points: every moment of a job, and the process that is killed there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from twofold_checkpoint.protocol.job import PHASES, SERVER_PHASES

Victim = Literal["trainer", "server", "both"]
Kind = Literal["sqlite", "postgresql"]


@dataclass(frozen=True)
class Moment:
    """A moment of a job: the process that stops there, and where; see kill_hook.py."""

    name: str
    process: str
    at: str
    restarted: bool = False
    """Whether it is the server's next life that stops there, after one that was killed while its trainer trained."""
    without_job: bool = False
    """Whether the job, or the upload, may not have been made yet."""


@dataclass(frozen=True)
class Point:
    """The processes to kill at a moment, and the kind of database."""

    moment: Moment
    victim: Victim
    database: Kind = "sqlite"

    @property
    def name(self) -> str:
        """The name of the point."""
        return f"{self.victim} at {self.moment.name} on {self.database}"


TRAINER, SERVER = "twofold_trainer", "twofold_server"
TRAINING = (
    *(Moment(phase, TRAINER, f"said {phase}") for phase in PHASES if phase not in SERVER_PHASES),
    Moment("snapshot, half written", TRAINER, "after twofold_trainer.training.snapshots:save_file"),
    Moment("snapshot, written", TRAINER, "after twofold_trainer.training.snapshots:ResumeSnapshots._write"),
    Moment("reduce", TRAINER, "before twofold_trainer.export.publish:reduce_precision"),
    Moment("publish, not yet in place", TRAINER, "after twofold_checkpoint.store:write_manifest"),
    Moment("publish, not yet said", TRAINER, "after twofold_trainer.export.publish:publish"),
    Moment("publish, said", TRAINER, "said Published"),
    Moment("last word", TRAINER, "said Finished"),
)
SERVING = (
    Moment("upload", SERVER, "before twofold_server.adaptation.uploads:move_dataset", without_job=True),
    Moment("queued, not yet in the table", SERVER, "before twofold_server.jobs.table:JobTable.add", without_job=True),
    Moment("queued, not yet answered", SERVER, "after twofold_server.jobs.table:JobTable.add"),
    Moment("started", SERVER, "after twofold_server.jobs.table:JobTable.start_next"),
    Moment("concluded", SERVER, "before twofold_server.adaptation.runner:final_state"),
    Moment("swap, nominated", SERVER, "after twofold_checkpoint.store:Store.set_candidate"),
    Moment("swap, loaded", SERVER, "before twofold_checkpoint.store:Store.promote"),
    Moment("swap, aliases moved", SERVER, "after twofold_checkpoint.store:Store.promote"),
    Moment("between, no report yet", SERVER, "before twofold_server.report.reporter:compose"),
    Moment(
        "restart, job not yet taken over", SERVER, "before twofold_server.jobs.table:JobTable.take_over", restarted=True
    ),
    Moment("restart, job taken over", SERVER, "after twofold_server.jobs.table:JobTable.take_over", restarted=True),
    Moment("restart, sweeping", SERVER, "before twofold_checkpoint.store:Store.remove_stale_staging", restarted=True),
)
ON_POSTGRESQL = ("validate", "train", "snapshot, written", "publish, not yet said", "publish, said", "last word")
"""Moments of the trainer at which it may matter where the jobs are."""


def all_points() -> Iterator[Point]:
    """Yield every point."""
    for moment in TRAINING:
        for victim in ("trainer", "server", "both"):
            yield Point(moment, victim)
    for moment in SERVING:
        yield Point(moment, "server")
        yield Point(moment, "server", "postgresql")
    for moment in TRAINING:
        if moment.name in ON_POSTGRESQL:
            yield Point(moment, "server", "postgresql")
            yield Point(moment, "both", "postgresql")

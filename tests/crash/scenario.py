"""What happens at a kill point, from the start of a server to the job that succeeds in the end."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from crash import kill_hook
from crash.cluster import Cluster, is_alive, wait_for
from crash.kill_points import SERVER, TRAINER, Point
from twofold import JobState, TwofoldError
from twofold_server.config.database_url import DatabaseUrl


@dataclass(frozen=True)
class World:
    """A base store, and the weights of its job without a kill."""

    base: Path
    weights: bytes


@dataclass(frozen=True)
class Outcome:
    """How a killed job ended."""

    state: str
    reason: str
    phases: int
    """How many phases were begun, those of all attempts together."""


def make_world(directory: Path, base: Path) -> World:
    """Run the job once without a kill."""
    cluster = furnish(directory, base)
    with ended(cluster):
        cluster.start()
        job = cluster.end_of(cluster.adapt())
        assert job.state is JobState.SUCCEEDED, job.reason
        cluster.stop()
    return World(base, cluster.weights(job.candidate_checkpoint_id))


def furnish(directory: Path, base: Path, database: DatabaseUrl | None = None) -> Cluster:
    """Return a cluster over a copy of the base store."""
    directory.mkdir(parents=True)
    shutil.copytree(base, directory / "store")
    return Cluster(directory, directory / "store", database)


@contextmanager
def ended(cluster: Cluster) -> Iterator[None]:
    """Clear the cluster at the end, also on errors."""
    try:
        yield
    finally:
        cluster.clear()


def tell(point: Point, directory: Path, world: World, database: DatabaseUrl | None = None) -> Outcome:
    """Kill at the point, and check the consequences. Raises AssertionError if anything is wrong."""
    cluster = furnish(directory, world.base, database)
    with ended(cluster):
        disturb(cluster, point)
        if cluster.server.poll() is not None:
            cluster.start()
        cluster.check_answers()
        outcome = _conclude(cluster, point, world)
        cluster.check_answers()
        cluster.age()
        last = cluster.measure()
        assert last.state is JobState.SUCCEEDED, last.reason
        cluster.wait_for_report(last)
        cluster.check_leftovers()
        cluster.stop()
        assert cluster.processes() == []
    return outcome


def disturb(cluster: Cluster, point: Point) -> None:
    """Wait for the point, and kill there. Processes that are not killed end or continue by themselves."""
    moment = point.moment
    if moment.restarted:
        kill_hook.order(cluster.directory, TRAINER, "said train")
        cluster.start()
        cluster.adapt()
        wait_for("the training", lambda: kill_hook.read_hit(cluster.directory))
        cluster.kill()
        kill_hook.order(cluster.directory, SERVER, moment.at)
        cluster.start(ready=False)
    else:
        kill_hook.order(cluster.directory, moment.process, moment.at)
        cluster.start()
        # Its answer may never come.
        threading.Thread(target=_try, args=(cluster, moment.name == "upload"), daemon=True).start()
    wait_for(f"the moment {moment.name!r}", lambda: kill_hook.read_hit(cluster.directory))
    stopped = kill_hook.read_hit(cluster.directory)
    trainers = {process.pid for process in cluster.trainers()}
    assert stopped is not None
    assert stopped == cluster.server.pid if moment.process == SERVER else trainers == {stopped}
    if point.victim in {"server", "both"}:
        cluster.kill()
    if point.victim in {"trainer", "both"}:
        psutil.Process(stopped).kill()
    wait_for("the end of the trainer", lambda: not any(map(is_alive, trainers)))


def _try(cluster: Cluster, upload: bool) -> None:
    with suppress(TwofoldError):
        if upload:
            cluster.upload()
        else:
            cluster.adapt()


def _conclude(cluster: Cluster, point: Point, world: World) -> Outcome:
    """Wait for the end of the job, or submit it now if it was never created."""
    jobs = cluster.jobs()
    assert point.moment.without_job or jobs, "the job is lost"
    assert len(jobs) <= 1
    job = cluster.end_of(jobs[0].id if jobs else cluster.adapt())
    assert job.reason
    assert job.state in {JobState.SUCCEEDED, JobState.FAILED}, (job.state, job.reason)
    if job.state is JobState.SUCCEEDED:
        assert cluster.store.aliases().current == job.candidate_checkpoint_id
        assert cluster.weights(job.candidate_checkpoint_id) == world.weights, "the weights are others than undisturbed"
    return Outcome(str(job.state), job.reason, len(job.phases))

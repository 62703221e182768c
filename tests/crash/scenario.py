"""What happens at a kill point, from the start of a server to the job that works after all."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from crash import kill_hook
from crash.cluster import House, is_alive, wait_for
from crash.kill_points import SERVER, TRAINER, Point
from twofold import JobState, TwofoldError
from twofold_server.config.database_url import DatabaseUrl


@dataclass(frozen=True)
class World:
    """Hold a base store, and the weights that the job ends with when nobody disturbs it."""

    base: Path
    weights: bytes


@dataclass(frozen=True)
class Outcome:
    """Say how a job ended that was killed at a point."""

    state: str
    reason: str
    phases: int
    """How many phases were begun, those of all attempts together."""


def make_world(directory: Path, base: Path) -> World:
    """Run the job once without disturbing it."""
    house = furnish(directory, base)
    with ended(house):
        house.start()
        job = house.end_of(house.adapt())
        assert job.state is JobState.SUCCEEDED, job.reason
        house.stop()
    return World(base, house.weights(job.candidate_checkpoint_id))


def furnish(directory: Path, base: Path, database: DatabaseUrl | None = None) -> House:
    """Copy the base store."""
    directory.mkdir(parents=True)
    shutil.copytree(base, directory / "store")
    return House(directory, directory / "store", database)


@contextmanager
def ended(house: House) -> Iterator[None]:
    """Leave no process behind, whatever happens."""
    try:
        yield
    finally:
        house.clear()


def tell(point: Point, directory: Path, world: World, database: DatabaseUrl | None = None) -> Outcome:
    """Kill at the point, and look at what is left. Raises AssertionError for whatever is not as it should be."""
    house = furnish(directory, world.base, database)
    with ended(house):
        disturb(house, point)
        if house.server.poll() is not None:
            house.start()
        house.check_answers()
        outcome = _conclude(house, point, world)
        house.check_answers()
        house.age()
        last = house.measure()
        assert last.state is JobState.SUCCEEDED, last.reason
        house.wait_for_report(last)
        house.check_leftovers()
        house.stop()
        assert house.processes() == []
    return outcome


def disturb(house: House, point: Point) -> None:
    """Let the point come, and kill there. What was not killed has to end, or to go on, by itself."""
    moment = point.moment
    if moment.restarted:
        kill_hook.order(house.directory, TRAINER, "said train")
        house.start()
        house.adapt()
        wait_for("the training", lambda: kill_hook.read_hit(house.directory))
        house.kill()
        kill_hook.order(house.directory, SERVER, moment.at)
        house.start(ready=False)
    else:
        kill_hook.order(house.directory, moment.process, moment.at)
        house.start()
        # Its answer may never come.
        threading.Thread(target=_try, args=(house, moment.name == "upload"), daemon=True).start()
    wait_for(f"the moment {moment.name!r}", lambda: kill_hook.read_hit(house.directory))
    stopped = kill_hook.read_hit(house.directory)
    trainers = {process.pid for process in house.trainers()}
    assert stopped is not None
    assert stopped == house.server.pid if moment.process == SERVER else trainers == {stopped}
    if point.victim in {"server", "both"}:
        house.kill()
    if point.victim in {"trainer", "both"}:
        psutil.Process(stopped).kill()
    wait_for("the end of the trainer", lambda: not any(map(is_alive, trainers)))


def _try(house: House, upload: bool) -> None:
    with suppress(TwofoldError):
        if upload:
            house.upload()
        else:
            house.adapt()


def _conclude(house: House, point: Point, world: World) -> Outcome:
    """Let the job come to its end, or be made now if it was not."""
    jobs = house.jobs()
    assert point.moment.without_job or jobs, "the job is lost"
    assert len(jobs) <= 1
    job = house.end_of(jobs[0].id if jobs else house.adapt())
    assert job.reason
    assert job.state in {JobState.SUCCEEDED, JobState.FAILED}, (job.state, job.reason)
    if job.state is JobState.SUCCEEDED:
        assert house.store.aliases().current == job.candidate_checkpoint_id
        assert house.weights(job.candidate_checkpoint_id) == world.weights, "the weights are others than undisturbed"
    return Outcome(str(job.state), job.reason, len(job.phases))

"""Checkpoints that jobs need are not deleted."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from support.job_specs import job_spec
from support.scripted_trainer import HANG, INLINE, SPEC, Harness, add_checkpoint, over, publish, runs, say, until
from twofold_checkpoint.errors import CheckpointInUseError, CheckpointNotFoundError
from twofold_checkpoint.protocol.events import PhaseStarted, Published
from twofold_checkpoint.store import Aliases
from twofold_server.inference.slot import Slot
from twofold_server.jobs.model import Job, JobSpec, JobState
from twofold_server.retention.deletion import Deleter, needed_by
from twofold_server.versions.alias_changes import Author

ANNA = Author("anna", "A test says so.")

TRAIN = say(PhaseStarted(phase="train"))


def spec(base: str) -> JobSpec:
    """Return a specification that builds on a checkpoint or an alias."""
    return job_spec(head="classifier", base=base)


@pytest.mark.parametrize(
    ("base", "started_from", "candidate", "needed"),
    [
        ("one", "one", "", {"one"}),
        ("current", "one", "", {"now", "one"}),
        ("candidate", "one", "", {"made", "one"}),
        ("previous", "one", "two", {"one", "two"}),  # There is no previous one.
    ],
)
def test_a_job_needs_its_base_and_its_candidate(base, started_from, candidate, needed):
    """A job needs its base by name, the resolved base, and its candidate."""
    now = dt.datetime.now(dt.UTC)
    job = Job(id="job", spec=spec(base), created=now, base=started_from, candidate=candidate)
    aliases = Aliases(current="now", candidate="made")

    actual = {name for name in ("one", "two", "now", "made", "other") if needed_by(name, [job], aliases)}

    assert actual == needed


def test_no_jobs_need_nothing():
    """Without unfinished jobs nothing is needed."""
    assert needed_by("one", [], Aliases(current="one")) is None


async def test_bases_are_kept_until_their_jobs_are_over(harness: Harness):
    """The bases of running and queued jobs are kept until the jobs are over."""
    for name in ("second", "third", "fourth"):
        add_checkpoint(harness.store, name)
    harness.play(TRAIN, say(Published(checkpoint_id="fourth")), HANG)

    async with harness.running() as runner:
        deleter = Deleter(harness.store, Slot(harness.metrics), runner.jobs)

        async def refused(checkpoint_id):
            with pytest.raises(CheckpointInUseError) as caught:
                await deleter.delete(checkpoint_id, ANNA)
            return str(caught.value)

        running = await runner.submit(spec("second"), INLINE)
        waiting = await runner.submit(spec("third"), INLINE)
        await until(runner, running.id, lambda view: runs(view) and view.candidate == "fourth")

        assert f"running job {running.id} needs second" in await refused("second")
        assert f"queued job {waiting.id} needs third" in await refused("third")
        assert f"job {running.id} needs fourth" in await refused("fourth")
        assert '"current"' in await refused("first")

        await runner.cancel(waiting.id)
        await runner.cancel(running.id)
        for name in ("second", "third", "fourth"):
            await deleter.delete(name, ANNA)
        assert {checkpoint.id for checkpoint in harness.store.list()} == {"first"}


async def test_a_job_and_a_deletion_at_once_do_not_part(harness: Harness):
    """If a job and a deletion race, either the job is created and its base stays, or the base is deleted and the job rejected."""
    harness.play(TRAIN)  # The trainer ends at once.

    async with harness.running() as runner:
        deleter = Deleter(harness.store, Slot(harness.metrics), runner.jobs)
        seen = set()
        for number in range(20):
            name = f"base{number}"
            add_checkpoint(harness.store, name)
            calls = [runner.submit(spec(name), INLINE), deleter.delete(name, ANNA)]
            calls = calls if number % 2 else calls[::-1]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            job, deleted = answers if number % 2 else answers[::-1]
            if isinstance(job, Job):
                assert isinstance(deleted, CheckpointInUseError), deleted
                await over(runner, job.id)
            else:
                assert (type(job), deleted) == (CheckpointNotFoundError, None)
            seen.add(type(job))
        assert CheckpointNotFoundError in seen


async def test_a_finished_job_needs_nothing(harness: Harness):
    """The base of a finished job can be deleted once no alias names it."""
    harness.play(*publish())

    async with harness.running() as runner:
        view = await over(runner, (await runner.submit(SPEC, INLINE)).id)
        assert view.state is JobState.SUCCEEDED
        add_checkpoint(harness.store, "third")
        harness.store.promote("third")
        await Deleter(harness.store, Slot(harness.metrics), runner.jobs).delete("first", ANNA)
        assert {checkpoint.id for checkpoint in harness.store.list()} == {"second", "third"}

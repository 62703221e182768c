"""Jobs that lose their trainer or server, and continue."""

from __future__ import annotations

import json
import os
import signal

import pytest
from support.job_specs import job_spec
from support.scripted_trainer import (
    HANG,
    INLINE,
    SPEC,
    TRAIN,
    Harness,
    finish,
    over,
    publish,
    runs,
    until,
)
from twofold_checkpoint.protocol.job import SNAPSHOTS
from twofold_server.jobs.model import JobState, StateEntered

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


@BOTH
async def test_a_job_whose_trainer_is_killed_gets_another_one(harness: Harness) -> None:
    """A job whose trainer is killed is queued, restarts before later jobs, records that in an event, and succeeds."""
    harness.play(TRAIN, ("die", 1), *publish())

    async with harness.running() as runner:
        first = await runner.submit(SPEC, INLINE)
        second = await runner.submit(job_spec(head="ner", promote="never"), INLINE)
        view = await over(runner, first.id)
        assert (view.state, view.restarts) == (JobState.SUCCEEDED, 1)
        events = [record.event async for record in runner.jobs.watch(first.id)]
        states = [item for item in events if isinstance(item, StateEntered)]
        assert [(state.state, state.lost) for state in states] == [
            (JobState.QUEUED, False),
            (JobState.RUNNING, False),
            (JobState.QUEUED, True),
            (JobState.RUNNING, False),
            (JobState.SUCCEEDED, False),
        ]
        assert states[2].reason == (
            "The trainer died with exit code -9 (killed, possibly out of memory). The job will resume: attempt 2 of 3."
        )
        # Two of the second attempt.
        assert [phase.name for phase in view.phases] == ["train", "train", "train", "swap"]
        assert all(phase.ended for phase in view.phases)
        assert view.ended <= (await over(runner, second.id)).started
        assert view.started == [record async for record in runner.jobs.watch(first.id)][1].time
    assert harness.metric("twofold_job_restarts_total") == 1
    assert harness.metric("twofold_jobs_running") == 0


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_a_trainer_that_dies_each_time_is_not_started_for_ever(harness: Harness, attempts: int) -> None:
    """After the maximum number of attempts the job fails with the reason, and serving is unaffected."""
    harness.set(job_attempts=attempts)
    harness.play(TRAIN, ("kill", signal.SIGSEGV))

    view = await harness.run()

    assert (view.state, view.restarts) == (JobState.FAILED, attempts - 1)
    died = "The trainer died with exit code -11 (Segmentation fault)."
    assert view.reason == (died if attempts == 1 else f"{died} That was attempt {attempts} of {attempts}.")
    assert len(view.phases) == attempts
    assert harness.promoter.promoted == []


async def test_a_failed_trainer_is_not_restarted(harness: Harness) -> None:
    """A trainer that fails with an event or an exit code is not restarted, because it would fail again."""
    for actions in ([finish("failed", "There is no data.")], [("exit", 1)]):
        harness.play(TRAIN, *actions)
        view = await harness.run()
        assert (view.state, view.restarts, len(view.phases)) == (JobState.FAILED, 0, 1)


@BOTH
@pytest.mark.parametrize("action", ["publish", "publish unheard"])
async def test_a_candidate_that_was_published_before_the_trainer_died_is_not_trained_again(
    harness: Harness, action: str
) -> None:
    """If a candidate was published before the trainer died, the next attempt finds it by its job and promotes it."""
    harness.play(TRAIN, (action, "second"), ("die", 1), ("exit", 9))

    view = await harness.run(promote="auto")

    assert (view.state, view.candidate, view.restarts) == (JobState.SUCCEEDED, "second", 1)
    assert view.reason == "Published second, which had passed the gate before the job was interrupted."
    assert [phase.name for phase in view.phases] == ["train", "swap"]
    assert harness.store.aliases().current == "second"


@BOTH
async def test_a_job_that_was_cancelled_does_not_come_back(harness: Harness) -> None:
    """A cancelled job that waits for another trainer, or whose server dies, ends as cancelled, without snapshots."""
    harness.play(("snapshot", 0), TRAIN, HANG)

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        await until(runner, view.id, runs)
    snapshots = harness.store.root / "jobs" / view.id / SNAPSHOTS
    assert snapshots.exists()

    runner = harness.make()
    await runner.jobs.open()
    try:
        assert (await runner.jobs.get(view.id)).state is JobState.QUEUED
        view = await runner.cancel(view.id)
        assert (view.state, bool(view.started)) == (JobState.CANCELLED, True)
    finally:
        await runner.jobs.close()
    assert not snapshots.exists()


@pytest.mark.parametrize("last", [finish(), finish("rejected"), finish("failed"), ("exit", 1)])
async def test_snapshots_go_with_the_end_of_their_job(harness: Harness, last: tuple[str, object]) -> None:
    """Snapshots exist while the job may need them, and are deleted at its end, however it ends."""
    harness.play(("snapshot", 0), TRAIN, ("die", 1), last)

    view = await harness.run()

    assert view.restarts == 1
    assert list(harness.store.root.glob(f"jobs/*/{SNAPSHOTS}")) == []


@BOTH
@pytest.mark.parametrize("attempts", [1, 2])
async def test_partial_files_of_a_killed_trainer_are_deleted(harness: Harness, attempts: int) -> None:
    """A half-written checkpoint of a killed trainer is deleted when its job is over or restarts, without a restart of the server."""
    harness.set(job_attempts=attempts)
    harness.play(TRAIN, ("stage", "half"), ("die", 1), finish())  # A second one would find the place taken.

    view = await harness.run()

    assert view.state is (JobState.FAILED if attempts == 1 else JobState.SUCCEEDED), view.reason
    assert list((harness.store.root / "staging").iterdir()) == []


async def test_the_end_of_a_job_keeps_recent_files(harness: Harness) -> None:
    """The end of a job deletes files without a job only after an hour, because another server may be creating their job."""
    young, old = (harness.store.root / "jobs" / name for name in ("job-young", "job-old"))

    async with harness.running() as runner:
        for path in (young, old):
            path.mkdir(parents=True)
        os.utime(old, (0, 0))
        await over(runner, (await runner.submit(SPEC, INLINE)).id)

    assert (young.exists(), old.exists()) == (True, False)


async def test_the_time_that_a_job_has_had_counts(harness: Harness) -> None:
    """The next trainer gets the remaining max_runtime, but at least one second, to evaluate the result."""
    for given, least, most in ((50.0, 40.0, 49.8), (0.1, 1.0, 1.0)):
        path = harness.store.root / "environment.json"
        (harness.store.root / "deaths").unlink(missing_ok=True)
        harness.play(TRAIN, ("sleep", 0.3), ("die", 1), ("environment", str(path)), finish())
        assert (await harness.run(max_runtime=given)).restarts == 1
        job = json.loads(path.read_text())[2]
        assert least <= job["request"]["max_runtime"] <= most


async def test_a_start_deletes_partial_files(harness: Harness) -> None:
    """At start, staged files, examples without a job, and snapshots and partial files of finished jobs are deleted; all else stays."""
    view = await harness.run()
    root = harness.store.root
    job = root / "jobs" / view.id
    for path in (root / "staging" / "half", root / "jobs" / "job-unmade", job / SNAPSHOTS):
        path.mkdir(parents=True)
        (path / "train.jsonl").write_text("{}")
    (job / "report.html.0.new").write_text("<")
    (root / "aliases.json.new").write_text("{")
    kept = {path.name for path in job.iterdir()} - {SNAPSHOTS, "report.html.0.new"}

    async with harness.running():
        pass

    assert [path.name for path in (root / "jobs").iterdir()] == [view.id]
    assert {path.name for path in job.iterdir()} == kept
    assert list((root / "staging").iterdir()) == []
    assert not (root / "aliases.json.new").exists()


@pytest.mark.parametrize("database", ["postgresql"])
async def test_a_start_next_to_others_keeps_recent_files(harness: Harness) -> None:
    """If servers share the jobs, a start deletes files without a job only after an hour."""
    young, old = (harness.store.root / "jobs" / name for name in ("job-young", "job-old"))
    for path in (young, old):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))

    async with harness.running():
        pass

    assert (young.exists(), old.exists()) == (True, False)


async def test_phases_end_when_their_trainer_does(harness: Harness) -> None:
    """A phase that runs when the trainer dies is ended, so that the durations add up."""
    harness.play(("say", '{"event": "PhaseStarted", "phase": "validate"}'), TRAIN, ("die", 1), TRAIN, finish())

    view = await harness.run()

    assert [phase.name for phase in view.phases] == ["validate", "train", "validate", "train", "train"]
    assert all(phase.ended for phase in view.phases)

"""Cancelled jobs, stopped servers and killed servers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from sqlalchemy import update
from support.doomed_server import doomed_server
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
from twofold_checkpoint.protocol.events import PhaseStarted
from twofold_server.adaptation.outcomes import STOPPED
from twofold_server.adaptation.runner import JobRunner
from twofold_server.errors import (
    DatabaseError,
    FailedPreconditionError,
    NotServingError,
)
from twofold_server.jobs.model import JobState, StateEntered
from twofold_server.jobs.table import JobTable
from twofold_server.storage.database import Database
from twofold_server.storage.schema import JOBS

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


@BOTH
@pytest.mark.parametrize("ignores", [False, True], ids=["polite", "deaf to SIGTERM"])
async def test_cancelling_waits_for_the_trainer(harness: Harness, ignores: bool) -> None:
    """CancelJob returns when the trainer has ended, by force if necessary; a second call finds the job over."""
    harness.grace = 0.5
    harness.play(*([("ignore", 0)] if ignores else []), TRAIN, HANG)

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        await until(runner, view.id, runs)
        assert runner.is_running
        trainers = psutil.Process().children()
        view = await asyncio.wait_for(runner.cancel(view.id), 10)
        assert (view.state, view.reason) == (JobState.CANCELLED, "CancelJob was called while the job ran.")
        assert not any(trainer.is_running() for trainer in trainers)
        with pytest.raises(FailedPreconditionError, match="already over: cancelled"):
            await runner.cancel(view.id)


@BOTH
async def test_a_waiting_job_is_cancelled_at_once(harness: Harness) -> None:
    """A queued job that is cancelled ends without a trainer, and the running job continues."""
    harness.play(TRAIN, ("sleep", 0.5), finish())

    async with harness.running() as runner:
        first = await runner.submit(SPEC, INLINE)
        second = await runner.submit(SPEC, INLINE)
        view = await runner.cancel(second.id)
        assert (view.state, view.started, view.phases) == (JobState.CANCELLED, None, ())
        assert (await over(runner, first.id)).state is JobState.SUCCEEDED


async def test_a_job_is_cancelled_at_any_moment(harness: Harness) -> None:
    """A job that is cancelled while its trainer starts ends as cancelled, and the queue continues."""
    async with harness.running() as runner:
        for delay in (0.0, 0.002, 0.01, 0.03):
            harness.play(HANG)
            view = await runner.submit(SPEC, INLINE)
            await asyncio.sleep(delay)
            view = await asyncio.wait_for(runner.cancel(view.id), 10)
            assert view.state is JobState.CANCELLED
        harness.play(finish())
        view = await runner.submit(SPEC, INLINE)
        assert (await over(runner, view.id)).state is JobState.SUCCEEDED


async def test_a_swap_is_not_cancelled(harness: Harness) -> None:
    """Once the swap has begun, the job is completed, and CancelJob says that it came too late."""
    harness.play(*publish())

    harness.promoter.may_promote = asyncio.Event()
    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        await until(runner, view.id, lambda view: view.phase == "swap")
        cancelling = asyncio.create_task(runner.cancel(view.id))
        await asyncio.sleep(0.05)
        harness.promoter.may_promote.set()
        with pytest.raises(FailedPreconditionError, match="ended before it could be cancelled: succeeded"):
            await cancelling
    assert harness.store.aliases().current == "second"


@BOTH
async def test_stopping_the_server_keeps_the_running_job_and_the_others(harness: Harness) -> None:
    """When the server stops, the running job returns to the queue with a reason; after a restart it runs first, then the others."""
    harness.play(TRAIN, HANG)

    async def watch(runner: JobRunner, job_id: str) -> None:
        async for _ in runner.jobs.watch(job_id):
            pass

    async with harness.running() as runner:
        first = await runner.submit(SPEC, INLINE)
        second = await runner.submit(SPEC, INLINE)
        await until(runner, first.id, runs)
        watching = asyncio.create_task(watch(runner, second.id))
        await asyncio.sleep(0.05)
    with pytest.raises(NotServingError):
        await watching

    harness.play(finish())
    async with harness.running() as runner:
        first, second = await over(runner, first.id), await over(runner, second.id)
        assert (first.state, second.state, first.restarts) == (JobState.SUCCEEDED, JobState.SUCCEEDED, 0)
        assert first.ended <= second.started
        assert STOPPED in [record.event async for record in runner.jobs.watch(first.id)]


@BOTH
@pytest.mark.parametrize(
    ("promoted", "state", "reason"),
    [
        (False, JobState.SUCCEEDED, "Published second, which had passed the gate before the job was interrupted."),
        (True, JobState.SUCCEEDED, "became current just before the server died"),
    ],
)
async def test_a_job_that_ran_when_the_server_died_gets_its_end(
    harness: Harness, promoted: bool, state: JobState, reason: str
) -> None:
    """After a restart no job is left running: its candidate is live, or the job runs again."""
    harness.play(*publish())
    view = await harness.run(promote="auto")
    if not promoted:
        harness.store.promote("first")
    dead = msgspec.structs.replace(view, state=JobState.RUNNING, ended=None, reason="")
    database = Database(harness.config.database or harness.store.root / "jobs.sqlite3")
    with database.writing() as connection:  # As if its last event had not been written.
        connection.execute(update(JOBS).values(state="running", job=msgspec.json.encode(dead)))
    database.close()

    async with harness.running() as runner:
        ended = await over(runner, view.id)
        assert ended.state is state
        assert reason in ended.reason
    assert harness.store.aliases().current == "second"


async def test_a_killed_server_leaves_only_its_queue(tmp_path: Path) -> None:
    """After SIGKILL of the server its trainer is gone, the running job gets another one, and the queued job follows."""
    async with doomed_server(str(tmp_path)) as (server, first, second):
        [trainer] = psutil.Process(server.pid).children()

    harness = Harness(tmp_path)  # Its trainers end well.
    async with harness.running() as runner:
        view = await over(runner, first)
        assert (view.state, view.restarts) == (JobState.SUCCEEDED, 1)
        assert (await over(runner, second)).state is JobState.SUCCEEDED
        assert not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE


async def test_two_servers_do_not_share_the_jobs_of_a_store(harness: Harness) -> None:
    """A second runner over the same store is rejected, because it would take over the first one's job."""
    async with harness.running():
        with pytest.raises(FailedPreconditionError, match="another server uses the job queue"):
            await harness.make().start()


@BOTH
async def test_a_job_without_storage_for_events_fails(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends the job and its trainer with the reason, even if the end cannot be written at first."""
    harness.play(TRAIN, HANG)
    monkeypatch.setattr("twofold_server.adaptation.runner._RETRY_SECONDS", 0.05)
    tell, failures = JobTable.append_event, iter(range(3))

    def full(table: JobTable, job_id: str, event: Any) -> Any:
        if isinstance(event, PhaseStarted | StateEntered) and next(failures, None) is not None:
            raise DatabaseError("database or disk is full")
        return tell(table, job_id, event)

    monkeypatch.setattr(JobTable, "append_event", full)

    async with harness.running() as runner:
        view = await over(runner, (await runner.submit(SPEC, INLINE)).id)
        assert (view.state, view.reason) == (JobState.FAILED, "database or disk is full.")
        assert psutil.Process().children() == []
        harness.play(finish())
        assert (await over(runner, (await runner.submit(SPEC, INLINE)).id)).state is JobState.SUCCEEDED

"""Several servers share the jobs of one store through PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from support.doomed_server import doomed_server
from support.postgresql import PostgreSQL
from support.scripted_trainer import HANG, INLINE, SPEC, TRAIN, Harness, finish, over, publish, runs, until
from twofold_server.adaptation import heartbeat
from twofold_server.config.database_url import DatabaseUrl
from twofold_server.errors import DatabaseError, FailedPreconditionError
from twofold_server.jobs import table as table_module
from twofold_server.jobs.model import JobState, StateEntered
from twofold_server.jobs.table import JobTable
from twofold_server.observability.metrics import Metrics

pytestmark = pytest.mark.parametrize("database", ["postgresql"])


TAKEN = StateEntered(state=JobState.FAILED, reason="Taken for dead.")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short heartbeats. The lease keeps its length, so that a busy machine does not count as dead."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)


@pytest.fixture
def peer(harness: Harness, tmp_path: Path) -> Harness:
    """A second server over the store and the database of the first."""
    peer = Harness(tmp_path)
    peer.set(database=harness.config.database)
    peer.metrics = Metrics()
    return peer


async def test_jobs_of_two_servers_run_one_at_a_time_and_are_seen_at_both(harness: Harness, peer: Harness) -> None:
    """Jobs of both servers run one at a time, on either server, and both servers report on all of them."""
    harness.play(TRAIN, ("sleep", 0.2), finish())

    async with harness.running() as first, peer.running() as two:
        ids = [(await runner.submit(SPEC, INLINE)).id for runner in (first, two) * 3]
        while unfinished := await two.jobs.unfinished():
            assert sum(view.state is JobState.RUNNING for view in unfinished) <= 1
        views = [await over(two, one_id) for one_id in ids]
        assert views == [await over(first, one_id) for one_id in ids]
        assert {view.state for view in views} == {JobState.SUCCEEDED}
        events = [record async for record in two.jobs.watch(ids[0])]
        assert [record.sequence for record in events] == list(range(1, views[0].last_sequence + 1))
        assert harness.metric("twofold_jobs_queued") == peer.metric("twofold_jobs_queued") == 0
    ended = [each.metric("twofold_jobs_total", state="succeeded") for each in (harness, peer)]
    assert sum(ended) == 6


async def test_a_starting_server_does_not_take_over_living_jobs(harness: Harness, peer: Harness) -> None:
    """A running job continues while another server starts, looks for orphaned jobs, and stops."""
    harness.play(TRAIN, ("sleep", 1.0), *publish())

    async with harness.running() as first:
        job_id = (await first.submit(SPEC, INLINE)).id
        await until(first, job_id, runs)
        async with peer.running() as two:
            for _ in range(3):
                await two.jobs.change.wait()
            assert not await two.jobs.abandoned()
        assert (await over(first, job_id)).state is JobState.SUCCEEDED


async def test_a_job_is_cancelled_at_a_server_that_does_not_run_it(harness: Harness, peer: Harness) -> None:
    """CancelJob on either server returns when the trainer is gone."""
    harness.play(TRAIN, HANG)

    async with harness.running() as first:
        job_id = (await first.submit(SPEC, INLINE)).id
        await until(first, job_id, runs)
        async with peer.running() as two:
            view = await asyncio.wait_for(two.cancel(job_id), 10)
            assert (view.state, view.reason) == (JobState.CANCELLED, "CancelJob was called while the job ran.")
            assert psutil.Process().children() == []


async def test_a_server_declared_dead_stops_its_job(
    harness: Harness, location: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was declared dead stops the trainer of a job that another server has taken over, promotes nothing, and continues."""
    harness.play(TRAIN, ("sleep", 0.3), *publish())

    async with harness.running() as first:
        job_id = (await first.submit(SPEC, INLINE)).id
        await until(first, job_id, runs)
        table = JobTable(location)
        with pytest.raises(FailedPreconditionError, match="another server"):
            table.append_event(job_id, TAKEN)
        assert table.take_over(job_id, TAKEN) == (None, ())
        with monkeypatch.context() as patch:
            patch.setattr(table_module, "LEASE_SECONDS", 0.0)  # Time passes.
            assert table.take_over(job_id, TAKEN)[0]
        assert table.take_over(job_id, TAKEN) == (None, ())
        table.close()
        harness.play(finish())
        assert (await over(first, (await first.submit(SPEC, INLINE)).id)).state is JobState.SUCCEEDED
        assert (await first.jobs.get(job_id)).reason == "Taken for dead."
        assert psutil.Process().children() == []
    assert harness.promoter.promoted == []


async def test_another_server_continues_the_jobs_of_a_killed_one(
    harness: Harness, location: DatabaseUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the lease of a killed server ends, another server continues its job and the queue, and the old trainer is gone."""
    async with doomed_server(str(tmp_path), location.reveal()) as (server, first, second), harness.running() as runner:
        [trainer] = psutil.Process(server.pid).children()
        for _ in range(3):
            await runner.jobs.change.wait()
        assert (await runner.jobs.get(first)).state is JobState.RUNNING
        harness.play(finish())
        server.kill()
        monkeypatch.setattr(table_module, "LEASE_SECONDS", 0.0)  # Time passes.
        view = await over(runner, first)
        assert (view.state, view.restarts) == (JobState.SUCCEEDED, 1)
        assert (await over(runner, second)).state is JobState.SUCCEEDED
        assert not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE


async def test_a_store_has_its_jobs_in_one_place(harness: Harness, peer: Harness) -> None:
    """A server with SQLite does not start next to servers that share a database, nor the other way round."""
    peer.set(database=None)

    for first, second in ((harness, peer), (peer, harness)):
        async with first.running():
            with pytest.raises(FailedPreconditionError, match="run both with the same --database"):
                await second.make().start()


async def test_a_database_that_restarts_is_waited_for(harness: Harness, postgresql: PostgreSQL) -> None:
    """A restart of the database server costs at most the call in progress."""
    async with harness.running() as runner:
        for _ in range(3):
            postgresql.hang_up()
            try:
                view = await runner.submit(SPEC, INLINE)
            except DatabaseError:
                view = await runner.submit(SPEC, INLINE)
            assert (await over(runner, view.id)).state.is_over

"""One job at a time, in order, within limits."""

from __future__ import annotations

import asyncio
import itertools

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
    runs,
    until,
)
from twofold_checkpoint.errors import CheckpointNotFoundError
from twofold_server.errors import (
    ConflictError,
    InvalidRequestError,
    OverloadedError,
)
from twofold_server.jobs.model import JobSpec, JobState

pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


async def test_jobs_run_one_at_a_time_in_order(harness: Harness) -> None:
    """Jobs run in the order of their creation, each after the end of the one before, and queue positions count down."""
    harness.play(TRAIN, ("wait", "go-on"), finish())

    async with harness.running() as runner:
        ids = [(await runner.submit(SPEC, INLINE)).id for _ in range(4)]
        await until(runner, ids[0], runs)
        assert [(await runner.jobs.get(item)).queue_position for item in ids] == [0, 0, 1, 2]
        assert harness.metric("twofold_jobs_queued") == 3
        (harness.store.root / "go-on").touch()
        views = [await over(runner, item) for item in ids]
        for earlier, later in itertools.pairwise(views):
            assert earlier.ended <= later.started
        listed, more = await runner.jobs.page(3, None)
        assert [entry.id for entry in listed] == ids[:0:-1]
        listed, more = await runner.jobs.page(3, more)
        assert ([entry.id for entry in listed], more) == (ids[:1], None)


async def test_a_full_queue_refuses_and_keeps_nothing(harness: Harness) -> None:
    """If the queue is full, a job is rejected with a retry delay and leaves no files."""
    harness.set(max_queued_jobs=1)
    harness.play(TRAIN, HANG)

    async with harness.running() as runner:
        first = await runner.submit(SPEC, INLINE)
        await until(runner, first.id, runs)
        await runner.submit(SPEC, INLINE)
        with pytest.raises(OverloadedError) as caught:
            await runner.submit(SPEC, INLINE)
        assert caught.value.retry_after > 0
        assert len(list((harness.store.root / "jobs").iterdir())) == 2


async def test_a_request_id_makes_one_job(harness: Harness) -> None:
    """The same request returns its job, also after a restart and without its base; another request with its id is rejected."""
    spec = job_spec(head="classifier", request_id="r1")
    different = job_spec(head="classifier", request_id="r1", seed=1)

    async with harness.running() as runner:
        views = await asyncio.gather(*(runner.submit(spec, INLINE) for _ in range(5)))
        assert len({view.id for view in views}) == 1
        assert len(list((harness.store.root / "jobs").iterdir())) == 1
        with pytest.raises(ConflictError, match="r1"):
            await runner.submit(different, INLINE)
        await over(runner, views[0].id)

    (harness.store.root / "aliases.json").unlink()
    async with harness.running() as runner:
        view = await runner.submit(spec, INLINE)
        assert (view.id, view.state) == (views[0].id, JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("spec", "error", "names"),
    [
        (job_spec(head="classifier", base="none"), CheckpointNotFoundError, "none"),
        (job_spec(head="classifier", base="../first"), CheckpointNotFoundError, "../first"),
        (
            job_spec(head="ner", annotated_types=("town",)),
            InvalidRequestError,
            "dataset.inline.train[1].entities[0].type",
        ),
    ],
)
async def test_impossible_jobs_are_rejected_at_submission(
    harness: Harness, spec: JobSpec, error: type[Exception], names: str
) -> None:
    """An invalid base or data set is an error of the call, not a failed job, and leaves no files."""
    async with harness.running() as runner:
        with pytest.raises(error) as caught:
            await runner.submit(spec, INLINE)
        assert names in str(caught.value)
        assert await runner.jobs.page(9, None) == ([], None)
    assert list(harness.store.root.glob("jobs/*")) == list(harness.store.root.glob("staging/*")) == []


async def test_a_cancelled_submission_is_complete_or_absent(harness: Harness) -> None:
    """Whenever a call is cancelled, each created job has its files, and no files are without a job."""
    harness.set(max_queued_jobs=99)

    async with harness.running() as runner:
        for delay in range(12):
            call = asyncio.create_task(runner.submit(SPEC, INLINE))
            await asyncio.sleep(delay / 1000)
            call.cancel()
        started_at = {task for task in asyncio.all_tasks() if "JobSubmitter" in str(task.get_coro())}
        await asyncio.gather(*started_at, return_exceptions=True)  # What a call began is carried on when it has gone.
        jobs, _ = await runner.jobs.page(99, None)
        assert sorted(job.id for job in jobs) == sorted(
            path.parent.name for path in harness.store.root.glob("jobs/*/train.jsonl")
        )
    assert list(harness.store.root.glob("staging/*")) == []

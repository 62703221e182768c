"""AdaptationService over a real port, with the stubs that callers use."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from support.scripted_trainer import HANG, Harness, finish, runs, say, until
from twofold import (
    AlreadyExistsError,
    AsyncClient,
    Entity,
    Example,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    Retry,
)
from twofold.v1 import adaptation_pb2 as pb
from twofold.v1.adaptation_pb2_grpc import AdaptationServiceStub, add_AdaptationServiceServicer_to_server
from twofold_checkpoint.protocol.events import GateEvaluated, PhaseStarted, ScoreMeasured
from twofold_server.adaptation.runner import JobRunner
from twofold_server.api.interceptor import ServerInterceptor
from twofold_server.api.servicers.adaptation import AdaptationServicer
from twofold_server.report.reporter import Reporter

TRAIN = [
    Example(text="where is it", label="where"),
    Example(text="to Rome", entities=(Entity(start=3, end=7, type="city"),)),
]


@asynccontextmanager
async def served(harness: Harness) -> AsyncIterator[tuple[str, JobRunner]]:
    """Serve a harness on a port."""
    async with harness.running() as runner:
        server = grpc.aio.server(interceptors=[ServerInterceptor(harness.metrics)])
        add_AdaptationServiceServicer_to_server(
            AdaptationServicer(runner, runner.jobs, Reporter(harness.store, runner.jobs), harness.uploads), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}", runner
        finally:
            await server.stop(0)


@asynccontextmanager
async def client_of(harness: Harness) -> AsyncIterator[tuple[AsyncClient, JobRunner]]:
    """Serve a harness; yield a client of the server and the job runner. The body may take 30 seconds."""
    async with served(harness) as (target, runner), AsyncClient(target, retry=Retry(attempts=1)) as client:
        async with asyncio.timeout(30):
            yield client, runner


async def test_a_job_is_made_watched_and_done(harness: Harness) -> None:
    """A caller adapts, watches every event live, and reads the report at the end."""
    harness.play(
        say(PhaseStarted(phase="train")),
        say(ScoreMeasured(figure="new", moment="before", metric="accuracy", value=0.25, examples=8)),
        ("sleep", 0.1),
        say(ScoreMeasured(figure="new", moment="after", metric="accuracy", value=0.75, examples=8)),
        say(GateEvaluated(verdict="pass", reason="It is better.")),
        ("publish", "second"),
        finish("succeeded", "Published second."),
    )

    async with client_of(harness) as (client, _):
        job = await client.adapt(TRAIN, head="classifier")
        assert (job.state, job.base_checkpoint_id, job.head) == ("queued", "first", "classifier")
        events = [event async for event in client.watch(job)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert all(event.message for event in events)
        again = [event async for event in client.watch(job, after_sequence=3)]
        assert again == events[3:]
        job = await client.job(job)
        assert (job.state, job.reason, job.candidate_checkpoint_id) == ("succeeded", "Published second.", "second")
        assert (job.report.new.before, job.report.new.after, job.report.verdict) == (0.25, 0.75, "pass")
        assert [phase.phase for phase in job.phases] == ["train", "swap"]
        assert job.last_sequence == events[-1].sequence
    assert harness.promoter.promoted == ["second"]


async def test_an_upload_is_made_and_used(harness: Harness) -> None:
    """Examples are uploaded before their job; an invalid one is named by part, line and field."""
    async with client_of(harness) as (client, _):
        upload = await client.upload_dataset(TRAIN, TRAIN[:1], display_name="May")
        assert (upload.train_examples, upload.dev_examples) == (2, 1)
        job = await client.wait(await client.adapt(upload, head="ner"))
        assert job.state == "succeeded"
        with pytest.raises(InvalidArgumentError, match=r"dev:2: text: is empty") as caught:
            await client.upload_dataset(TRAIN, [TRAIN[0], Example(text="")])
        assert caught.value.reason == "INVALID_EXAMPLE"
        with pytest.raises(NotFoundError, match="there is no upload"):
            await client.adapt("upload-none", head="ner")


async def test_errors_have_their_codes(harness: Harness) -> None:
    """Each error has the status code and the details of the contract."""
    harness.set(max_queued_jobs=1)
    harness.play(say(PhaseStarted(phase="train")), HANG)

    async with client_of(harness) as (client, runner):
        with pytest.raises(InvalidArgumentError) as wrong:
            await client.adapt([Example(text="a", entities=(Entity(start=0, end=2, type="x"),))], head="ner")
        assert wrong.value.violations[0].field == "dataset.inline.train[0].entities[0].end"
        with pytest.raises(NotFoundError):
            await client.adapt(TRAIN, head="ner", base_checkpoint="none")
        job = await client.adapt(TRAIN, head="ner", request_id="r")
        await until(runner, job.id, runs)
        assert (await client.adapt(TRAIN, head="ner", request_id="r")).id == job.id
        with pytest.raises(AlreadyExistsError):
            await client.adapt(TRAIN, head="classifier", request_id="r")
        waiting = await client.adapt(TRAIN, head="ner")
        with pytest.raises(OverloadedError) as full:
            await client.adapt(TRAIN, head="ner")
        assert full.value.retry_after
        assert (await client.cancel(waiting)).state == "cancelled"
        assert (await client.cancel(job)).state == "cancelled"
        with pytest.raises(FailedPreconditionError, match="already over"):
            await client.cancel(job)
        for call in (client.job("job-none"), client.cancel("job-none"), anext(client.watch("job-none"))):
            with pytest.raises(NotFoundError, match="there is no job 'job-none'"):
                await call


async def test_jobs_are_listed_newest_first_in_pages(harness: Harness) -> None:
    """Pages follow each other without gaps or repetitions, and an invalid page size is rejected."""
    async with client_of(harness) as (client, _):
        made = [(await client.adapt(TRAIN, head="ner")).id for _ in range(5)]
        assert [job.id async for job in client.jobs(page_size=2)] == made[::-1]
        with pytest.raises(InvalidArgumentError, match="page_size"):
            await anext(client.jobs(page_size=501))


@pytest.mark.parametrize("token", ["x", "-1", "9" * 19, "²"])
async def test_an_invalid_page_token_is_rejected(harness: Harness, token: str) -> None:
    """An error about an invalid page token names the field."""
    async with served(harness) as (target, _), grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await AdaptationServiceStub(channel).ListJobs(pb.ListJobsRequest(page_token=token))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cancelled_upload_leaves_no_files(harness: Harness) -> None:
    """A stream that is cancelled before its end stores nothing."""
    async with served(harness) as (target, _), grpc.aio.insecure_channel(target) as channel:
        call = AdaptationServiceStub(channel).UploadDataset()
        batch = pb.ExampleBatch(examples=[pb.Example(text="a", label="b")])
        await call.write(pb.UploadDatasetRequest(train=batch))
        for _ in itertools.takewhile(lambda _: not list(harness.store.root.glob("staging/*")), range(200)):
            await asyncio.sleep(0.01)
        call.cancel()
        for _ in itertools.takewhile(lambda _: list(harness.store.root.glob("staging/*")), range(200)):
            await asyncio.sleep(0.01)
    assert list(harness.store.root.glob("staging/*")) == list(harness.store.root.glob("uploads/*")) == []


async def test_watchers_come_and_go(harness: Harness) -> None:
    """A cancelled watch ends alone; other watchers see the end of the job."""
    harness.play(say(PhaseStarted(phase="train")), ("sleep", 0.5), finish())

    async with client_of(harness) as (client, runner):
        job = await client.adapt(TRAIN, head="ner")

        async def watch() -> str:
            return [str(event.payload) async for event in client.watch(job)][-1]

        leaving, *staying = (asyncio.create_task(watch()) for _ in range(4))
        await until(runner, job.id, runs)
        leaving.cancel()
        assert await asyncio.gather(*staying) == ["succeeded"] * 3

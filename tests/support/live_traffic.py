"""Live traffic, and jobs with known candidates."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import grpc
from support import tiny_checkpoints
from support.scripted_trainer import TRAIN, Harness, finish, say
from twofold.v1 import adaptation_pb2, checkpoints_pb2
from twofold.v1.adaptation_pb2_grpc import AdaptationServiceStub
from twofold_checkpoint.protocol.events import GateEvaluated, Published

TEXTS = ("sunny", "it is cold in berlin", "sunny monday", "cold and sunny")
"""Live texts, of words that no golden text has."""
WATCH = {"rollback_share": 1.0, "rollback_min_samples": 20, "rollback_seconds": 120}
PATIENCE = 120


async def until(true, what):
    """Wait until a condition is true."""
    end = time.monotonic() + PATIENCE
    while not await true():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def traffic(server, texts=TEXTS, callers=3):
    """Call continuously; yield the checkpoints that answered and the codes of failed calls."""
    answered, failed, stop = [], [], asyncio.Event()

    async def call():
        while not stop.is_set():
            try:
                answered.append((await server.predict(*texts, patience=PATIENCE)).checkpoint_id)
            except grpc.aio.AioRpcError as error:
                failed.append(error.code())
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(call()) for _ in range(callers)]
    try:
        yield answered, failed
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def promote(server, name):
    """Promote a checkpoint as a person."""
    return await server.checkpoints.PromoteCheckpoint(checkpoints_pb2.PromoteCheckpointRequest(checkpoint=name))


async def undone(server, cause):
    """Wait until a swap is rolled back."""

    async def is_so():
        return await server.metric("twofold_swap_rollbacks_total", cause=cause) == 1

    await until(is_so, f"undone for {cause}")


def harness_of(tmp_path, recipe):
    """Return a store with "a", and a trainer whose job publishes "bad"."""
    store = tiny_checkpoints.make_store(tmp_path / "store", "a")
    tiny_checkpoints.publish(store, recipe, name="bad")
    harness = Harness(tmp_path)
    judged = say(GateEvaluated(verdict="pass", reason="It is better on all four examples."))
    harness.play(TRAIN, judged, say(Published(checkpoint_id="bad")), finish("succeeded", "Published bad."))
    return store, harness


async def submit(server, **fields):
    """Submit a job, and return its id."""
    example = adaptation_pb2.Example(text="sunny", label="a_weather")
    dataset = {"inline": {"train": [example] * 4}}
    request = adaptation_pb2.AdaptRequest(head="HEAD_CLASSIFIER", dataset=dataset, **fields)
    return (await AdaptationServiceStub(server.channel).Adapt(request)).job.id


async def job_of(server, job):
    """Return a job in its current state."""
    return (await AdaptationServiceStub(server.channel).GetJob(adaptation_pb2.GetJobRequest(job_id=job))).job


async def follow(server, job):
    """Return a job once it is over."""
    async for _ in AdaptationServiceStub(server.channel).WatchJob(adaptation_pb2.WatchJobRequest(job_id=job)):
        pass
    return await job_of(server, job)


async def adapt(server):
    """Run a job to its end, and return its id."""
    actual = await follow(server, await submit(server))
    assert actual.state == adaptation_pb2.JOB_STATE_SUCCEEDED, actual.reason
    return actual.id

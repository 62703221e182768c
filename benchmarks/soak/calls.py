"""The valid and invalid calls of a soak test, each with its share of the load and its expected status codes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random

import grpc
from grpc import StatusCode
from twofold.v1 import adaptation_pb2, checkpoints_pb2
from twofold.v1 import inference_pb2 as pb
from twofold.v1.adaptation_pb2_grpc import AdaptationServiceStub
from twofold.v1.checkpoints_pb2_grpc import CheckpointServiceStub
from twofold.v1.inference_pb2_grpc import InferenceServiceStub

TIMEOUT_SECONDS = 30.0
"""Deadline of calls that should succeed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A channel with its stubs, texts to send, and a random generator."""

    channel: grpc.aio.Channel
    inference: InferenceServiceStub
    adaptation: AdaptationServiceStub
    checkpoints: CheckpointServiceStub
    texts: list[str]
    rng: Random

    @classmethod
    def over(cls, channel: grpc.aio.Channel, texts: list[str], seed: int) -> Caller:
        """Make the stubs of a channel."""
        stubs = InferenceServiceStub(channel), AdaptationServiceStub(channel), CheckpointServiceStub(channel)
        return cls(channel, *stubs, texts, Random(seed))

    def sample(self, limit: int) -> list[str]:
        """Return random texts, at most *limit*."""
        return self.rng.choices(self.texts, k=self.rng.randint(1, limit))

    def request(self, limit: int = 8) -> pb.PredictRequest:
        """Return a request for random texts."""
        return pb.PredictRequest(texts=self.sample(limit), top_labels=self.rng.randint(0, 3))


async def predict(caller: Caller) -> None:
    """Predict a few texts and count the answers."""
    request = caller.request()
    response = await caller.inference.Predict(request, timeout=TIMEOUT_SECONDS)
    if len(response.predictions) != len(request.texts):
        raise AssertionError(f"{len(request.texts)} texts got {len(response.predictions)} answers")


async def predict_long(caller: Caller) -> None:
    """Predict a text of many windows."""
    text = " ".join(caller.rng.choices(caller.texts, k=60))[:20_000]
    await caller.inference.Predict(pb.PredictRequest(texts=[text]), timeout=TIMEOUT_SECONDS)


async def embed(caller: Caller) -> None:
    """Embed a few texts."""
    await caller.inference.Embed(pb.EmbedRequest(texts=caller.sample(4), include_tokens=True), timeout=TIMEOUT_SECONDS)


async def predict_with_short_deadline(caller: Caller) -> None:
    """Predict with a deadline that may be too short."""
    await caller.inference.Predict(caller.request(), timeout=caller.rng.choice((0.0005, 0.005, 0.02, 0.1)))


async def cancel(caller: Caller) -> None:
    """Start a prediction and cancel it."""
    call = caller.inference.Predict(caller.request(), timeout=TIMEOUT_SECONDS)
    await asyncio.sleep(caller.rng.choice((0.0, 0.005, 0.02, 0.1)))
    call.cancel()
    await call


async def predict_invalid(caller: Caller) -> None:
    """Send a request that must be rejected: no text, too many, too long, or a negative number."""
    bad = (
        pb.PredictRequest(),
        pb.PredictRequest(texts=["x"] * 300),
        pb.PredictRequest(texts=["x" * 20_001]),
        pb.PredictRequest(texts=["x"], top_labels=-1),
    )
    await caller.inference.Predict(caller.rng.choice(bad), timeout=TIMEOUT_SECONDS)


async def send_malformed_bytes(caller: Caller) -> None:
    """Send bytes that are not a valid message."""
    method = caller.channel.unary_unary("/twofold.v1.InferenceService/Predict")
    await method(b"\x0a\xff" + caller.rng.randbytes(caller.rng.randint(0, 40)), timeout=TIMEOUT_SECONDS)


async def call_unknown_method(caller: Caller) -> None:
    """Call a method that does not exist."""
    await caller.channel.unary_unary("/twofold.v1.InferenceService/Divine")(b"", timeout=TIMEOUT_SECONDS)


async def stream(caller: Caller) -> None:
    """Stream requests and read all answers, or cancel after a few."""
    length, limit = caller.rng.randint(1, 12), caller.rng.choice((None, 1, 3))

    async def requests() -> AsyncIterator[pb.PredictStreamRequest]:
        for _ in range(length):
            yield pb.PredictStreamRequest(request=caller.request(4))

    call = caller.inference.PredictStream(requests(), timeout=TIMEOUT_SECONDS)
    read = 0
    async for _ in call:
        read += 1
        if limit is not None and read >= limit:
            call.cancel()
            return
    if limit is None and read != length:
        raise AssertionError(f"{length} requests of a stream got {read} answers")


async def name_unknown_resource(caller: Caller) -> None:
    """Request a job or checkpoint that does not exist."""
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: caller.adaptation.GetJob(adaptation_pb2.GetJobRequest(job_id="job-unknown"), timeout=TIMEOUT_SECONDS),
        lambda: caller.checkpoints.PromoteCheckpoint(
            checkpoints_pb2.PromoteCheckpointRequest(checkpoint="unknown"), timeout=TIMEOUT_SECONDS
        ),
        lambda: caller.checkpoints.GetCheckpoint(
            checkpoints_pb2.GetCheckpointRequest(checkpoint="unknown"), timeout=TIMEOUT_SECONDS
        ),
    )
    await caller.rng.choice(calls)()


async def adapt_invalid(caller: Caller) -> None:
    """Request an adaptation to invalid data: a span beyond its text, or no examples."""
    entity = pb.Entity(start=3, end=99, type="city")
    example = adaptation_pb2.Example(text="in Oslo", entities=adaptation_pb2.EntityList(entities=[entity]))
    train = caller.rng.choice(([], [example]))
    dataset = adaptation_pb2.Dataset(inline=adaptation_pb2.Examples(train=train))
    request = adaptation_pb2.AdaptRequest(dataset=dataset, head=pb.HEAD_NER)
    await caller.adaptation.Adapt(request, timeout=TIMEOUT_SECONDS)


OK = frozenset({StatusCode.OK})
CALLS: dict[Callable[[Caller], Awaitable[None]], tuple[int, frozenset[StatusCode]]] = {
    predict: (40, OK),
    predict_long: (1, OK),
    embed: (6, OK),
    stream: (6, OK),
    predict_with_short_deadline: (10, OK | {StatusCode.DEADLINE_EXCEEDED}),
    cancel: (10, OK | {StatusCode.CANCELLED}),
    predict_invalid: (10, frozenset({StatusCode.INVALID_ARGUMENT})),
    send_malformed_bytes: (6, frozenset({StatusCode.INVALID_ARGUMENT})),
    call_unknown_method: (2, frozenset({StatusCode.UNIMPLEMENTED})),
    name_unknown_resource: (6, frozenset({StatusCode.NOT_FOUND})),
    adapt_invalid: (3, frozenset({StatusCode.INVALID_ARGUMENT})),
}
"""Each call's share of the load, and the status codes that it may end with."""


def shuffled_calls(rng: Random) -> itertools.cycle[Callable[[Caller], Awaitable[None]]]:
    """Return an endless sequence of calls in random order and with their shares."""
    calls = [call for call, (share, _) in CALLS.items() for _ in range(share)]
    rng.shuffle(calls)
    return itertools.cycle(calls)

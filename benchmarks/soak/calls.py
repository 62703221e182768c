"""Calls that people make and should not make, each with the status codes that it may end with."""

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

PATIENCE = 30.0
"""Seconds after which a call that nobody hurried has failed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A channel with its stubs, texts to send, and chance."""

    channel: grpc.aio.Channel
    inference: InferenceServiceStub
    adaptation: AdaptationServiceStub
    checkpoints: CheckpointServiceStub
    texts: list[str]
    chance: Random

    @classmethod
    def over(cls, channel: grpc.aio.Channel, texts: list[str], seed: int) -> Caller:
        """Make the stubs of a channel."""
        stubs = InferenceServiceStub(channel), AdaptationServiceStub(channel), CheckpointServiceStub(channel)
        return cls(channel, *stubs, texts, Random(seed))

    def some(self, most: int) -> list[str]:
        """Choose some texts."""
        return self.chance.choices(self.texts, k=self.chance.randint(1, most))

    def request(self, most: int = 8) -> pb.PredictRequest:
        """Ask about some texts."""
        return pb.PredictRequest(texts=self.some(most), top_labels=self.chance.randint(0, 3))


async def predict(caller: Caller) -> None:
    """Ask about a few texts, and count the answers."""
    request = caller.request()
    response = await caller.inference.Predict(request, timeout=PATIENCE)
    if len(response.predictions) != len(request.texts):
        raise AssertionError(f"{len(request.texts)} texts got {len(response.predictions)} answers")


async def predict_long(caller: Caller) -> None:
    """Ask about a text of many windows."""
    text = " ".join(caller.chance.choices(caller.texts, k=60))[:20_000]
    await caller.inference.Predict(pb.PredictRequest(texts=[text]), timeout=PATIENCE)


async def embed(caller: Caller) -> None:
    """Ask for features."""
    await caller.inference.Embed(pb.EmbedRequest(texts=caller.some(4), include_tokens=True), timeout=PATIENCE)


async def hurry(caller: Caller) -> None:
    """Ask with no time for the answer."""
    await caller.inference.Predict(caller.request(), timeout=caller.chance.choice((0.0005, 0.005, 0.02, 0.1)))


async def leave(caller: Caller) -> None:
    """Ask, and go away."""
    call = caller.inference.Predict(caller.request(), timeout=PATIENCE)
    await asyncio.sleep(caller.chance.choice((0.0, 0.005, 0.02, 0.1)))
    call.cancel()
    await call


async def misuse(caller: Caller) -> None:
    """Ask what must be refused: nothing, too much, an odd number."""
    bad = (
        pb.PredictRequest(),
        pb.PredictRequest(texts=["x"] * 300),
        pb.PredictRequest(texts=["x" * 20_001]),
        pb.PredictRequest(texts=["x"], top_labels=-1),
    )
    await caller.inference.Predict(caller.chance.choice(bad), timeout=PATIENCE)


async def garble(caller: Caller) -> None:
    """Send bytes that are no message."""
    method = caller.channel.unary_unary("/twofold.v1.InferenceService/Predict")
    await method(b"\x0a\xff" + caller.chance.randbytes(caller.chance.randint(0, 40)), timeout=PATIENCE)


async def miscall(caller: Caller) -> None:
    """Call a method that is not there."""
    await caller.channel.unary_unary("/twofold.v1.InferenceService/Divine")(b"", timeout=PATIENCE)


async def stream(caller: Caller) -> None:
    """Stream requests and read every answer, or go away in the middle of them."""
    length, patience = caller.chance.randint(1, 12), caller.chance.choice((None, 1, 3))

    async def requests() -> AsyncIterator[pb.PredictStreamRequest]:
        for _ in range(length):
            yield pb.PredictStreamRequest(request=caller.request(4))

    call = caller.inference.PredictStream(requests(), timeout=PATIENCE)
    read = 0
    async for _ in call:
        read += 1
        if patience is not None and read >= patience:
            call.cancel()
            return
    if patience is None and read != length:
        raise AssertionError(f"{length} requests of a stream got {read} answers")


async def misname(caller: Caller) -> None:
    """Ask for what is not there."""
    asks: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: caller.adaptation.GetJob(adaptation_pb2.GetJobRequest(job_id="job-of-nobody"), timeout=PATIENCE),
        lambda: caller.checkpoints.PromoteCheckpoint(
            checkpoints_pb2.PromoteCheckpointRequest(checkpoint="nowhere"), timeout=PATIENCE
        ),
        lambda: caller.checkpoints.GetCheckpoint(
            checkpoints_pb2.GetCheckpointRequest(checkpoint="nowhere"), timeout=PATIENCE
        ),
    )
    await caller.chance.choice(asks)()


async def misteach(caller: Caller) -> None:
    """Order an adaptation to examples that cannot be: a span beyond its text, or none at all."""
    entity = pb.Entity(start=3, end=99, type="city")
    example = adaptation_pb2.Example(text="in Oslo", entities=adaptation_pb2.EntityList(entities=[entity]))
    train = caller.chance.choice(([], [example]))
    dataset = adaptation_pb2.Dataset(inline=adaptation_pb2.Examples(train=train))
    request = adaptation_pb2.AdaptRequest(dataset=dataset, head=pb.HEAD_NER)
    await caller.adaptation.Adapt(request, timeout=PATIENCE)


OK = frozenset({StatusCode.OK})
KINDS: dict[Callable[[Caller], Awaitable[None]], tuple[int, frozenset[StatusCode]]] = {
    predict: (40, OK),
    predict_long: (1, OK),
    embed: (6, OK),
    stream: (6, OK),
    hurry: (10, OK | {StatusCode.DEADLINE_EXCEEDED}),
    leave: (10, OK | {StatusCode.CANCELLED}),
    misuse: (10, frozenset({StatusCode.INVALID_ARGUMENT})),
    garble: (6, frozenset({StatusCode.INVALID_ARGUMENT})),
    miscall: (2, frozenset({StatusCode.UNIMPLEMENTED})),
    misname: (6, frozenset({StatusCode.NOT_FOUND})),
    misteach: (3, frozenset({StatusCode.INVALID_ARGUMENT})),
}
"""How often each is made beside the others, and how it may end."""


def mix(chance: Random) -> itertools.cycle[Callable[[Caller], Awaitable[None]]]:
    """Shuffle a deck of calls, each as often as it is made, to be dealt again and again."""
    deck = [kind for kind, (times, _) in KINDS.items() for _ in range(times)]
    chance.shuffle(deck)
    return itertools.cycle(deck)

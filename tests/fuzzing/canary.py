"""A canary: constant calls whose answers are known."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
from fuzzing.values import CHECKPOINTS, MARK
from fuzzing.world import World
from prometheus_client.parser import text_string_to_metric_families
from support import tiny_checkpoints
from twofold.v1 import inference_pb2 as pb
from twofold.v1.inference_pb2_grpc import InferenceServiceStub

_ANSWERS = {
    (tag, text): tiny_checkpoints.answer(text, tag=tag) for tag in CHECKPOINTS for text in tiny_checkpoints.TEXTS
}
_BUGS = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}


@dataclass
class Canary:
    """Compares answers with those computed in NumPy. *wrong* lists the differences."""

    world: World
    patience: float
    wrong: list[str] = field(default_factory=list)
    answered: int = 0
    slowest: float = 0.0

    async def sing(self, channel: grpc.aio.Channel, every: float) -> None:
        """Call until cancelled, and keep checkpoints available for promotion."""
        while True:
            await self.ask(channel)
            await asyncio.to_thread(self.world.restock)
            await asyncio.sleep(every)

    async def ask(self, channel: grpc.aio.Channel) -> None:
        """Predict every text in one call. Retry a call that is shed."""
        stub, token = InferenceServiceStub(channel), self.world.known.tokens.get("all")
        metadata = [("authorization", f"Bearer {token}")] if token else []
        started_at = time.monotonic()
        request = pb.PredictRequest(texts=tiny_checkpoints.TEXTS)
        try:
            answer = await stub.Predict(request, metadata=metadata, timeout=self.patience)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.wrong.append(f"the canary got {error.code().name}: {error.details()}")
            return
        self.slowest = max(self.slowest, time.monotonic() - started_at)
        self.answered += 1
        self.wrong += _faults(answer)

    def look_at_metrics(self) -> None:
        """Read the metrics once: they contain no text of callers, and no call that ended as an internal error."""
        with urllib.request.urlopen(self.world.server.metrics_url, timeout=self.patience) as response:
            text = response.read().decode()
        self.wrong += [f"a caller's words in the metrics: {line}" for line in text.splitlines() if MARK in line]
        self.wrong += [
            f"the server has counted {sample.value:.0f} of {sample.labels}"
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "twofold_requests_total" and sample.labels["code"] in _BUGS and sample.value
        ]
        if (lines := text.count("\n")) > 5000:
            self.wrong.append(f"the metrics have {lines} lines")


def _faults(answer: pb.PredictResponse) -> Iterator[str]:
    for text, given in zip(tiny_checkpoints.TEXTS, answer.predictions, strict=True):
        expected = _ANSWERS[given.checkpoint_id, text]
        spans = [(entity.start, entity.end, entity.type) for entity in expected.entities]
        if (
            given.label != expected.labels[0].label
            or [(entity.start, entity.end, entity.type) for entity in given.entities] != spans
        ):
            yield f"a wrong answer to {text!r}: {given}"

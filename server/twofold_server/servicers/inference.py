"""InferenceService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from twofold.v1 import inference_pb2 as pb
from twofold.v1.inference_pb2_grpc import InferenceServiceServicer

from twofold_server import VERSION
from twofold_server.config import Config
from twofold_server.errors import NotServingError
from twofold_server.inference import Inference
from twofold_server.metrics import Metrics
from twofold_server.slot import Slot
from twofold_server.wire.inference import (
    read_embed,
    read_predict,
    write_embeddings,
    write_model,
    write_predictions,
)


class InferenceServicer(InferenceServiceServicer):
    """Answer Predict, Embed and GetModel. PredictStream comes later."""

    def __init__(self, inference: Inference, slot: Slot, config: Config, metrics: Metrics) -> None:
        self._inference = inference
        self._slot = slot
        self._config = config
        self._metrics = metrics

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:  # noqa: N802
        """Classify texts and find their entities."""
        call = read_predict(request, self._config)
        answers = await self._inference.predict(
            call.texts, top=call.top, entities=call.entities, deadline=deadline_of(context)
        )
        self._metrics.texts.labels("Predict").inc(len(call.texts))
        return write_predictions(call, answers)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Return features of texts."""
        call = read_embed(request, self._config)
        answers = await self._inference.embed(call.texts, deadline=deadline_of(context))
        self._metrics.texts.labels("Embed").inc(len(call.texts))
        # Millions of numbers, if every token comes: not on the event loop.
        return await asyncio.to_thread(write_embeddings, call, answers)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: ARG002, N802
        """Describe the live checkpoint."""
        engine = self._slot.live
        if engine is None:
            raise NotServingError("no checkpoint is live; publish one and promote it")
        return write_model(engine, self._config, VERSION)

    def PredictStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.PredictStreamRequest], context: Any
    ) -> AsyncIterator[pb.PredictStreamResponse]:
        """Answer UNIMPLEMENTED."""
        raise NotImplementedError


def deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Return the caller's deadline in seconds of time.monotonic(); infinite if there is none."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining

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
from twofold_server.api.wire.inference import (
    read_embed,
    read_predict,
    write_embeddings,
    write_model,
    write_predictions,
)
from twofold_server.config.settings import LimitSettings
from twofold_server.errors import NotServingError, OverloadedError
from twofold_server.inference.predictor import Predictor
from twofold_server.inference.slot import Slot
from twofold_server.observability.metrics import Metrics

MAX_STREAM_REQUESTS = 8
"""Requests of a stream in progress at once, besides the one being read and the one whose answer is next."""


class InferenceServicer(InferenceServiceServicer):
    """Answers Predict, PredictStream, Embed and GetModel."""

    def __init__(self, inference: Predictor, slot: Slot, limits: LimitSettings, metrics: Metrics) -> None:
        self._inference = inference
        self._slot = slot
        self._limits = limits
        self._metrics = metrics

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:  # noqa: N802
        """Classify texts and find their entities."""
        return await self._answer(request, deadline_of(context), "Predict")

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Return features of texts."""
        call = read_embed(request, self._limits)
        answers = await self._inference.embed(call.texts, deadline=deadline_of(context))
        self._metrics.texts.labels("Embed").inc(len(call.texts))
        # With token features this converts millions of numbers, so it must not run on the event loop.
        return await asyncio.to_thread(write_embeddings, call, answers)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: ARG002, N802
        """Describe the live checkpoint."""
        engine = self._slot.live
        if engine is None:
            raise NotServingError("no checkpoint is live; publish one and promote it")
        return write_model(engine, self._limits, VERSION)

    async def PredictStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.PredictStreamRequest], context: Any
    ) -> AsyncIterator[pb.PredictStreamResponse]:
        """Answer requests in order, a few at a time, and stop reading while these are in progress."""
        deadline = deadline_of(context)
        answers: asyncio.Queue[asyncio.Task[pb.PredictResponse] | Exception | None] = asyncio.Queue(MAX_STREAM_REQUESTS)
        pending: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            try:
                async for message in request_iterator:
                    answer = asyncio.create_task(self._answer_with_retry(message.request, deadline))
                    pending.add(answer)
                    await answers.put(answer)
            except Exception as error:  # noqa: BLE001 -- raised below: what came before it is answered first.
                await answers.put(error)
            else:
                await answers.put(None)

        reader = asyncio.create_task(read())
        pending.add(reader)
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                yield pb.PredictStreamResponse(response=await answer)
                pending.discard(answer)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _answer_with_retry(self, request: pb.PredictRequest, deadline: float) -> pb.PredictResponse:
        """Answer one request of a stream. Under load a stream waits instead of being rejected, which slows its client down."""
        while True:
            try:
                return await self._answer(request, deadline, "PredictStream")
            except OverloadedError as error:
                await asyncio.sleep(error.retry_after)

    async def _answer(self, request: pb.PredictRequest, deadline: float, method: str) -> pb.PredictResponse:
        call = read_predict(request, self._limits)
        answers = await self._inference.predict(call.texts, top=call.top, entities=call.entities, deadline=deadline)
        self._metrics.texts.labels(method).inc(len(call.texts))
        return write_predictions(call, answers)


def deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """Return the call's deadline in seconds of time.monotonic(); infinite if there is none."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining

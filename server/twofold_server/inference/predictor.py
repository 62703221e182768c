"""Request handling: admission, tokenization, and waiting for the batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from twofold_checkpoint.decoding import Prediction

from twofold_server.errors import DeadlineExceededError, NotServingError, OverloadedError
from twofold_server.inference.batcher import Batcher
from twofold_server.inference.entries import Result
from twofold_server.inference.listeners import RequestListener, TrafficMirror
from twofold_server.inference.slot import Slot
from twofold_server.inference.tasks import Embedding, EmbedTask, PredictTask, Task
from twofold_server.observability.metrics import Metrics
from twofold_server.observability.request_context import CLOCK_SKEW_SECONDS, CallStage, sampled_span
from twofold_server.observability.tracing import Tracer

T = TypeVar("T")

_INLINE_TOKENIZE_CHARS = 500
"""Maximum code points of a request that is tokenized on the event loop. Waking a thread would take longer."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a request spent in each stage."""

    tokenize: float
    queue: float
    infer: float
    decode: float


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """One answer per text, each with the id of the checkpoint that produced it."""

    answers: list[T]
    checkpoint_ids: list[str]
    timings: Timings


class Predictor:
    """Answers requests. Long texts are tokenized on worker threads, off the event loop."""

    def __init__(
        self,
        slot: Slot,
        batcher: Batcher,
        metrics: Metrics,
        *,
        max_requests: int,
        threads: int,
        mirror: TrafficMirror | None = None,
        listeners: Sequence[RequestListener] = (),
        tracer: Tracer | None = None,
    ) -> None:
        self._slot = slot
        self._batcher = batcher
        self._metrics = metrics
        self._max_requests = max_requests
        self._requests = 0
        self._mirror = mirror
        self._listeners = listeners
        self._tracer = tracer
        self._threads = ThreadPoolExecutor(max(1, threads), thread_name_prefix="text")

    def stop(self) -> None:
        """Shut down the worker threads."""
        self._threads.shutdown(wait=True)

    async def predict(
        self, texts: Sequence[str], *, top: int = 1, entities: bool = True, deadline: float = float("inf")
    ) -> Answers[Prediction]:
        """Classify texts and extract their entities. *top* is the number of labels per text; 0 skips the classification head.

        Raises OverloadedError, NotServingError or DeadlineExceededError.
        """
        return await self._answer(texts, PredictTask(top, entities), deadline)

    async def embed(self, texts: Sequence[str], *, deadline: float = float("inf")) -> Answers[Embedding]:
        """Return the features of texts. Raises the same errors as predict()."""
        return await self._answer(texts, EmbedTask(), deadline)

    async def _answer(self, texts: Sequence[str], task: Task[T], deadline: float) -> Answers[T]:
        loop = asyncio.get_running_loop()
        with self._permit():
            engine = self._slot.live
            if engine is None:
                raise NotServingError("no checkpoint is live; publish one and promote it")
            started_at = time.monotonic()
            if sum(map(len, texts)) <= _INLINE_TOKENIZE_CHARS:
                encodings = engine.encoder.encode(texts)
            else:
                encodings = await loop.run_in_executor(self._threads, engine.encoder.encode, texts)
            tokenize_seconds = self._observe("tokenize", started_at)
            futures = self._batcher.submit(encodings, engine, task, deadline)
            if self._mirror is not None:
                self._mirror.sample(texts)
            try:
                results = await asyncio.gather(*futures)
            except (asyncio.CancelledError, DeadlineExceededError):
                # A call cancelled before its deadline says nothing about latency. If all answers are late, only this reports it.
                if time.monotonic() >= deadline - CLOCK_SKEW_SECONDS:
                    self._finish(started_at)
                raise
            finally:
                # After a failure or a cancellation the remaining answers are not needed.
                for future in futures:
                    future.cancel()
            # The texts of a batch share its duration, so each batch counts once.
            batches = {result.batch: result for result in results}
            timings = Timings(
                tokenize=tokenize_seconds,
                queue=max(result.queue_seconds for result in results),
                infer=sum(batch.infer_seconds for batch in batches),
                decode=sum(batch.decode_seconds for batch in batches),
            )
            if self._tracer and (span := sampled_span()):
                self._tracer.add_stages(span, _stages(started_at, tokenize_seconds, batches.values()))
            self._finish(started_at)
            return Answers(
                [result.answer for result in results], [result.batch.checkpoint_id for result in results], timings
            )

    def _finish(self, started_at: float) -> None:
        for listener in self._listeners:
            listener.request_finished(time.monotonic() - started_at)

    def _observe(self, stage: str, started_at: float) -> float:
        seconds = time.monotonic() - started_at
        self._metrics.stage_seconds.labels(stage).observe(seconds)
        return seconds

    def check_room(self) -> None:
        """Raise OverloadedError if the server cannot admit a request. Call it before any other work for the request."""
        self._check_requests()
        self._batcher.check_room()

    def _check_requests(self) -> None:
        if self._requests >= self._max_requests:
            self._metrics.shed.labels("requests").inc()
            raise OverloadedError(
                f"{self._requests} requests are in progress, the maximum; retry later",
                retry_after=self._batcher.wait_seconds(),
            )

    @contextmanager
    def _permit(self) -> Iterator[None]:
        """Count a request while it is in progress. Raises OverloadedError at the limit."""
        self._check_requests()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1


def _stages(started_at: float, tokenize_seconds: float, results: Iterable[Result[Any]]) -> Iterator[CallStage]:
    """Yield the stages of a request, given one result per batch."""
    yield CallStage("tokenize", started_at, tokenize_seconds)
    for result in results:
        batch = result.batch
        yield CallStage("queue", batch.started_at - result.queue_seconds, result.queue_seconds)
        yield CallStage("infer", batch.started_at, batch.infer_seconds, batch.span)
        yield CallStage("decode", batch.decode_started_at, batch.decode_seconds, batch.span)

"""Texts to answers: tokenize, wait for a batch, decode."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from twofold_checkpoint.decoding import Floats, Prediction, merge_tokens, merge_windows

from twofold_server.batcher import Batcher, Result
from twofold_server.engine import FEATURE_OUTPUTS, HEAD_OUTPUTS, Output, decode
from twofold_server.errors import NotServingError, OverloadedError
from twofold_server.metrics import Metrics
from twofold_server.slot import Slot

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a request spent in each stage."""

    tokenize: float
    queue: float
    infer: float
    decode: float


@dataclass(frozen=True, slots=True)
class Embedding:
    """Features of one text: *pooled* (hidden,), *tokens* (tokens, hidden) at code-point *offsets* (tokens, 2)."""

    pooled: Floats
    tokens: Floats
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """One answer for each text, with the id of the checkpoint that gave it."""

    answers: list[T]
    checkpoint_ids: list[str]
    timings: Timings


class Inference:
    """Answer requests. Tokenizing and decoding run on threads of their own, off the event loop."""

    def __init__(self, slot: Slot, batcher: Batcher, metrics: Metrics, *, max_requests: int, threads: int) -> None:
        self._slot = slot
        self._batcher = batcher
        self._metrics = metrics
        self._max_requests = max_requests
        self._requests = 0
        self._threads = ThreadPoolExecutor(max(1, threads), thread_name_prefix="text")

    def stop(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=True)

    async def predict(
        self, texts: Sequence[str], *, top: int = 1, entities: bool = True, deadline: float = float("inf")
    ) -> Answers[Prediction]:
        """Classify texts (the *top* labels; zero leaves the head out) and find their entities.

        Raises OverloadedError, NotServingError or ExpiredError.
        """

        def read(results: Sequence[Result]) -> list[Prediction]:
            # A swap may come between the batches of a request, and engines have labels of their own.
            answers: list[Prediction] = []
            for engine, some in itertools.groupby(results, key=lambda result: result.engine):
                alike = list(some)
                encodings = [result.encoding for result in alike]
                rows = [result.rows for result in alike]
                answers += decode(encodings, rows, engine.labels, top=top, entities=entities)
            return answers

        return await self._answer(texts, HEAD_OUTPUTS, read, deadline)

    async def embed(self, texts: Sequence[str], *, deadline: float = float("inf")) -> Answers[Embedding]:
        """Return the features of texts. Raises what predict raises."""

        def read(result: Result) -> Embedding:
            pooled = merge_windows(result.encoding, [row[0] for row in result.rows])
            tokens = merge_tokens(result.encoding, [row[1] for row in result.rows])
            return Embedding(pooled, tokens, result.encoding.offsets)

        return await self._answer(
            texts, FEATURE_OUTPUTS, lambda results: [read(result) for result in results], deadline
        )

    async def _answer(
        self,
        texts: Sequence[str],
        outputs: tuple[Output, ...],
        read: Callable[[Sequence[Result]], list[T]],
        deadline: float,
    ) -> Answers[T]:
        loop = asyncio.get_running_loop()
        with self._permit():
            engine = self._slot.live
            if engine is None:
                raise NotServingError("no checkpoint is live; publish one and promote it")
            begun = time.monotonic()
            encodings = await loop.run_in_executor(self._threads, engine.encoder.encode, texts)
            tokenize = self._observe("tokenize", begun)
            waiting = self._batcher.submit(encodings, engine, outputs, deadline)
            try:
                results = await asyncio.gather(*waiting)
            finally:
                # If one failed or the caller went away, nobody waits for the others.
                for answer in waiting:
                    answer.cancel()
            begun = time.monotonic()
            answers = await loop.run_in_executor(self._threads, read, results)
            timings = Timings(
                tokenize=tokenize,
                queue=max(result.queue_seconds for result in results),
                # Texts of one batch share its time: each batch counts once.
                infer=sum({result.batch: result.infer_seconds for result in results}.values()),
                decode=self._observe("decode", begun),
            )
            return Answers(answers, [result.engine.id for result in results], timings)

    def _observe(self, stage: str, begun: float) -> float:
        seconds = time.monotonic() - begun
        self._metrics.stage_seconds.labels(stage).observe(seconds)
        return seconds

    @contextmanager
    def _permit(self) -> Iterator[None]:
        """Let a request in, or refuse it before any work is done for it."""
        if self._requests >= self._max_requests:
            self._metrics.shed.labels("requests").inc()
            raise OverloadedError(
                f"{self._requests} requests are in progress, which is the most; come back later",
                retry_after=self._batcher.wait_seconds(),
            )
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

"""Dynamic batching: many requests share one forward pass.

Texts wait in one queue. The queue grows while the engine computes; as soon as a pass is free, it takes the next batch. Batches
form by back-pressure, so no timer adds latency to an idle server. See ADR 15, and ADR 20 for concurrent passes.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from twofold_checkpoint.encoding import Encoding

from twofold_server.errors import NotServingError
from twofold_server.inference.engine import Engine, Rows
from twofold_server.inference.entries import Batch, QueueEntry, Result, reencode_for
from twofold_server.inference.listeners import BatchListener
from twofold_server.inference.queue import RequestQueue
from twofold_server.inference.slot import Slot
from twofold_server.inference.tasks import Task
from twofold_server.inference.throughput import ThroughputEstimator
from twofold_server.observability.metrics import Metrics
from twofold_server.observability.request_context import sampled_span
from twofold_server.observability.tracing import Tracer

T = TypeVar("T")

_MIN_PASS_TOKENS = 64
"""Minimum queued tokens to start a further pass while another one runs. Smaller batches wait for that pass to end: a pass of one
or two texts costs so much more per token that a second core would gain nothing."""

_MAX_PASS_TOKENS_RATIO = 64
"""Maximum tokens of a pass, as a multiple of its fixed overhead. A larger pass is hardly cheaper per token, and its oldest texts
would wait for its newest: twice as long in a full queue of sentences."""


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """A batch after its forward pass: one list of output rows per entry."""

    number: int
    entries: Sequence[QueueEntry]
    engine: Engine
    """Provides the labels; its session may already be closed."""
    encodings: Sequence[Encoding]
    rows: Sequence[Rows]
    started_at: float
    seconds: float


class Batcher:
    """A dynamic batcher. Answers texts in batches, from one engine at a time.

    Call submit() and stop() on one event loop. Forward passes run on *passes* threads; a free thread takes the next batch.
    Another thread decodes the outputs of each batch and wakes the loop once. A batch holds one lease, so it never mixes
    checkpoints, and it contains all windows of each of its texts.
    """

    def __init__(
        self,
        slot: Slot,
        metrics: Metrics,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_wait: float = float("inf"),
        passes: int = 1,
        listeners: Sequence[BatchListener] = (),
        tracer: Tracer | None = None,
    ) -> None:
        self._slot = slot
        self._metrics = metrics
        self._max_batch_tokens = max_batch_tokens
        self._arrival = threading.Condition()
        """Guards the queue, *_free* and *_stopping*."""
        self._free = 0
        """Number of threads that wait for a batch."""
        self._stopping = False
        self._throughput = ThroughputEstimator(passes)
        self._queue = RequestQueue(metrics, self._throughput, max_tokens=max_queue_tokens, max_wait=max_wait)
        self._batch_numbers = itertools.count(1)
        self._threads = [
            threading.Thread(target=self._run, args=(n,), name="engine", daemon=True) for n in range(passes)
        ]
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._loop: asyncio.AbstractEventLoop
        self._listeners = listeners
        self._tracer = tracer

    @property
    def is_busy(self) -> bool:
        """True if texts are queued."""
        return bool(self._queue)

    def start(self) -> None:
        """Start the threads. Call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    async def stop(self) -> None:
        """Answer all queued texts, then stop."""
        with self._arrival:
            self._stopping = True
            self._arrival.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._decoder.shutdown)

    def submit(
        self, encodings: Sequence[Encoding], engine: Engine, task: Task[T], deadline: float
    ) -> list[asyncio.Future[Result[T]]]:
        """Queue all texts of a request, or none, and return a future for each answer.

        Cancel a future to remove its text from the queue. Raises OverloadedError if the queue is full, and NotServingError
        after stop().
        """
        span, new_future = sampled_span() if self._tracer else None, self._loop.create_future
        entries = [QueueEntry(encoding, engine, task, deadline, new_future(), span) for encoding in encodings]
        with self._arrival:
            if self._stopping:
                raise NotServingError("the server is shutting down; call another server")
            if not self._queue.has_room_for(sum(entry.tokens for entry in entries)):
                self._deliver(self._queue.drop_expired())
            self._queue.add(entries)
            self._arrival.notify(len(entries))
        return [entry.answer for entry in entries]

    def check_room(self) -> None:
        """Raise OverloadedError if a new text would probably wait too long."""
        self._queue.check_time()

    def wait_seconds(self) -> float:
        """Return the estimated seconds until the queue is empty, as a retry delay for rejected requests."""
        return self._queue.wait_seconds()

    def _run(self, thread: int) -> None:
        """Compute batches until the batcher stops. Runs on an engine thread."""
        while (batch := self._next_batch(thread)) is not None:
            started_at = time.monotonic()
            try:
                output = self._compute(batch, started_at)
            except Exception as error:  # noqa: BLE001 -- any error goes to the callers of this batch only.
                self._fail(batch, started_at, error)
            else:
                self._decoder.submit(self._decode, output)

    def _next_batch(self, thread: int) -> list[QueueEntry] | None:
        """Wait for the next batch and remove it from the queue. Return None once the batcher stops and the queue is empty."""
        with self._arrival:
            self._throughput.end(thread)
            self._free += 1
            while True:
                self._deliver(self._queue.drop_expired())
                all_free = self._free == len(self._threads)
                if self._queue and (all_free or self._stopping or self._queue.tokens >= _MIN_PASS_TOKENS):
                    break
                if self._stopping:
                    return None
                self._arrival.wait()
            engine = self._slot.live
            pass_overhead_tokens = engine.pass_overhead_tokens if engine else 0
            # Free threads share the queue, so that none takes all of it while another is idle.
            share = max(_MIN_PASS_TOKENS, -(-self._queue.tokens // self._free)) + pass_overhead_tokens
            self._free -= 1
            batch = self._queue.next_batch(
                min(share, _MAX_PASS_TOKENS_RATIO * pass_overhead_tokens), self._max_batch_tokens, pass_overhead_tokens
            )
            self._throughput.begin(thread, sum(entry.tokens for entry in batch), pass_overhead_tokens)
            return batch

    def _compute(self, batch: Sequence[QueueEntry], started_at: float) -> BatchOutput:
        """Run the forward passes of a batch under one lease."""
        with self._slot.lease() as engine, self._report_failure(engine):
            encodings = reencode_for(engine, batch)
            windows = [window for encoding in encodings for window in encoding.windows]
            outputs = iter(engine.run_windows(windows, batch[0].task.outputs, self._max_batch_tokens))
        seconds = time.monotonic() - started_at
        self._observe_metrics([len(window.ids) for window in windows], engine.pass_overhead_tokens, seconds)
        rows = [list(itertools.islice(outputs, len(encoding.windows))) for encoding in encodings]
        return BatchOutput(next(self._batch_numbers), batch, engine, encodings, rows, started_at, seconds)

    def _decode(self, output: BatchOutput) -> None:
        """Decode output rows into answers, one call per task of the batch. Runs on the decoder thread."""
        started_at = time.monotonic()
        try:
            with self._report_failure(output.engine):
                answers = dict(self._read(output))
        except Exception as error:  # noqa: BLE001 -- as above.
            self._fail(output.entries, output.started_at, error)
            return
        non_finite = [entry for entry in output.entries if entry not in answers]
        self._notify(output.engine.id, output.seconds, failed=bool(non_finite))
        if non_finite:
            message = f"{output.engine.id} returned values that are not finite"
            self._fail(non_finite, output.started_at, FloatingPointError(message))
        seconds = time.monotonic() - started_at
        self._metrics.stage_seconds.labels("decode").observe(seconds)
        span = self._trace(output.entries, output.started_at, number=output.number, checkpoint=output.engine.id)
        batch = Batch(output.number, output.engine.id, output.started_at, output.seconds, started_at, seconds, span)
        results: list[tuple[QueueEntry, Result[Any]]] = []
        for entry, answer in answers.items():
            waited = output.started_at - entry.arrived
            self._metrics.stage_seconds.labels("queue").observe(waited)
            results.append((entry, Result(answer, batch, waited)))
        self._deliver(results)

    @staticmethod
    def _read(output: BatchOutput) -> Iterator[tuple[QueueEntry, Any]]:
        """Yield the answers of all texts whose outputs are finite."""
        complete = [index for index, rows in enumerate(output.rows) if all(rows)]
        for task in dict.fromkeys(output.entries[index].task for index in complete):
            indices = [index for index in complete if output.entries[index].task == task]
            answers = task.read(
                output.engine,
                [output.encodings[index] for index in indices],
                [output.rows[index] for index in indices],
            )
            yield from zip((output.entries[index] for index in indices), answers, strict=True)

    @contextmanager
    def _report_failure(self, engine: Engine) -> Iterator[None]:
        """Notify the listeners if the block raises."""
        try:
            yield
        except Exception:
            self._notify(engine.id, None, failed=True)
            raise

    def _notify(self, checkpoint_id: str, seconds: float | None, *, failed: bool) -> None:
        for listener in self._listeners:
            listener.batch_finished(checkpoint_id, seconds=seconds, failed=failed)

    def _fail(self, entries: Sequence[QueueEntry], started_at: float, error: Exception) -> None:
        """Pass an error on to the callers of a batch."""
        self._trace(entries, started_at, error=type(error).__name__)
        self._deliver([(entry, error) for entry in entries])

    def _trace(self, entries: Sequence[QueueEntry], started_at: float, **attributes: Any) -> Any:
        """Record a span for a finished batch and return it. Return None if no text of the batch is traced."""
        if self._tracer is None or not (calls := list(dict.fromkeys(entry.span for entry in entries if entry.span))):
            return None
        windows, tokens = sum(entry.windows for entry in entries), sum(entry.tokens for entry in entries)
        return self._tracer.add_batch(
            calls, started_at, texts=len(entries), windows=windows, tokens=tokens, **attributes
        )

    def _deliver(self, results: Sequence[tuple[QueueEntry, Result[Any] | Exception]]) -> None:
        """Set results or errors on the futures that are still pending, on the event loop."""
        if not results:
            return

        def deliver() -> None:
            for entry, answer in results:
                if entry.answer.done():
                    continue
                if isinstance(answer, Exception):
                    entry.answer.set_exception(answer)
                else:
                    entry.answer.set_result(answer)

        self._loop.call_soon_threadsafe(deliver)

    def _observe_metrics(self, lengths: Sequence[int], pass_overhead_tokens: int, seconds: float) -> None:
        tokens, padded = sum(lengths), len(lengths) * max(lengths)
        self._throughput.update(tokens, pass_overhead_tokens, seconds)
        self._metrics.batch_windows.observe(len(lengths))
        self._metrics.batch_tokens.observe(padded)
        self._metrics.tokens.labels("text").inc(tokens)
        self._metrics.tokens.labels("padding").inc(padded - tokens)
        self._metrics.stage_seconds.labels("infer").observe(seconds)

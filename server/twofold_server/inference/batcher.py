"""Many requests, one forward pass.

Texts wait in one queue. While the engine computes, the queue grows; when it has a pass free, the next batch is cut from what is
there: batches form by back-pressure, and no timer adds latency to a quiet server. See ADR 15 and, for several passes at a
time, ADR 20.
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
from twofold_server.observability.request_context import recorded
from twofold_server.observability.tracing import Traces

T = TypeVar("T")

_MIN_PASS_TOKENS = 64
"""Tokens for which a further pass begins beside one that runs. What is less waits for that one to end: passes of one text or
two cost so much more for each token that a second core would gain nothing by them."""

_MAX_PASS_TOKENS_RATIO = 64
"""How many times as much as a pass costs beside its tokens, it may have of them. With more a pass would be hardly cheaper for
each token, and who came first would wait for those of his length who came last: in a full queue of sentences, twice as long."""


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """Hold a batch after its forward pass: one list of output rows for each entry."""

    number: int
    entries: Sequence[QueueEntry]
    engine: Engine
    """There for its labels; its session may be closed by now."""
    encodings: Sequence[Encoding]
    rows: Sequence[Rows]
    started_at: float
    seconds: float


class Batcher:
    """Answer texts in batches, from one engine at a time.

    submit() and stop() are called on one event loop. Forward passes run on *passes* threads, each of which takes the next
    batch by itself, at the moment when it is free, and answers are decoded on another, a batch at once; the loop is woken
    once for each batch. A batch takes one lease, so it never mixes checkpoints, and a text's windows are never divided
    between two.
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
        traces: Traces | None = None,
    ) -> None:
        self._slot = slot
        self._metrics = metrics
        self._max_batch_tokens = max_batch_tokens
        self._arrival = threading.Condition()
        """Guards the queue, the count of free passes and whether to stop."""
        self._free = 0
        """Passes that wait for a batch."""
        self._stopping = False
        self._throughput = ThroughputEstimator(passes)
        self._queue = RequestQueue(metrics, self._throughput, max_tokens=max_queue_tokens, max_wait=max_wait)
        self._numbers = itertools.count(1)
        self._threads = [
            threading.Thread(target=self._run, args=(n,), name="engine", daemon=True) for n in range(passes)
        ]
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._loop: asyncio.AbstractEventLoop
        self._listeners = listeners
        self._traces = traces

    @property
    def is_busy(self) -> bool:
        """Whether texts wait for an engine."""
        return bool(self._queue)

    def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    async def stop(self) -> None:
        """Answer what waits, then stop."""
        with self._arrival:
            self._stopping = True
            self._arrival.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._decoder.shutdown)

    def submit(
        self, encodings: Sequence[Encoding], engine: Engine, reader: Task[T], deadline: float
    ) -> list[asyncio.Future[Result[T]]]:
        """Queue a request's texts, all or none of them, and return their answers to wait for.

        Raises OverloadedError if the queue is too long, or would be, and NotServingError after stop(). An answer that is
        cancelled leaves the queue.
        """
        call, new = recorded() if self._traces else None, self._loop.create_future
        entries = [QueueEntry(encoding, engine, reader, deadline, new(), call) for encoding in encodings]
        with self._arrival:
            if self._stopping:
                raise NotServingError("the server is going away; ask another one")
            if not self._queue.has_room_for(sum(entry.tokens for entry in entries)):
                self._deliver(self._queue.drop_expired())
            self._queue.add(entries)
            self._arrival.notify(len(entries))
        return [entry.answer for entry in entries]

    def check_room(self) -> None:
        """Raise OverloadedError if a text that comes now would probably wait too long."""
        self._queue.check_time()

    def wait_seconds(self) -> float:
        """Guess how long the queue takes, for those who are sent away."""
        return self._queue.wait_seconds()

    def _run(self, thread: int) -> None:
        """Compute batch after batch, on a thread of the engine's."""
        while (batch := self._next_batch(thread)) is not None:
            started_at = time.monotonic()
            try:
                output = self._compute(batch, started_at)
            except Exception as error:  # noqa: BLE001 -- whatever it was, only this batch's callers hear of it.
                self._fail(batch, started_at, error)
            else:
                self._decoder.submit(self._decode, output)

    def _next_batch(self, thread: int) -> list[QueueEntry] | None:
        """Wait for the next batch and take it out of the queue; None when all is answered and nothing more comes."""
        with self._arrival:
            self._throughput.end(thread)
            self._free += 1
            while True:
                self._deliver(self._queue.drop_expired())
                alone = self._free == len(self._threads)
                if self._queue and (alone or self._stopping or self._queue.tokens >= _MIN_PASS_TOKENS):
                    break
                if self._stopping:
                    return None
                self._arrival.wait()
            engine = self._slot.live
            pass_overhead_tokens = engine.pass_overhead_tokens if engine else 0
            # Passes that are free share what waits, so that none takes all of it while another one has nothing to do.
            share = max(_MIN_PASS_TOKENS, -(-self._queue.tokens // self._free)) + pass_overhead_tokens
            self._free -= 1
            batch = self._queue.next_batch(
                min(share, _MAX_PASS_TOKENS_RATIO * pass_overhead_tokens), self._max_batch_tokens, pass_overhead_tokens
            )
            self._throughput.begin(thread, sum(entry.tokens for entry in batch), pass_overhead_tokens)
            return batch

    def _compute(self, batch: Sequence[QueueEntry], started_at: float) -> BatchOutput:
        """Run a batch under one lease."""
        with self._slot.lease() as engine, self._report_failure(engine):
            encodings = reencode_for(engine, batch)
            windows = [window for encoding in encodings for window in encoding.windows]
            outputs = iter(engine.run_windows(windows, batch[0].reader.outputs, self._max_batch_tokens))
        seconds = time.monotonic() - started_at
        self._observe_metrics([len(window.ids) for window in windows], engine.pass_overhead_tokens, seconds)
        rows = [list(itertools.islice(outputs, len(encoding.windows))) for encoding in encodings]
        return BatchOutput(next(self._numbers), batch, engine, encodings, rows, started_at, seconds)

    def _decode(self, output: BatchOutput) -> None:
        """Turn output rows into answers, on the decoder's thread: a batch at once for all who read alike."""
        started_at = time.monotonic()
        try:
            with self._report_failure(output.engine):
                answers = dict(self._read(output))
        except Exception as error:  # noqa: BLE001 -- as above.
            self._fail(output.entries, output.started_at, error)
            return
        broken = [entry for entry in output.entries if entry not in answers]
        self._notify(output.engine.id, output.seconds, failed=bool(broken))
        if broken:
            wrong = f"{output.engine.id} answers with numbers that are not finite"
            self._fail(broken, output.started_at, FloatingPointError(wrong))
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
        """Yield the answers of the texts that have rows."""
        complete = [index for index, rows in enumerate(output.rows) if all(rows)]
        for reader in dict.fromkeys(output.entries[index].reader for index in complete):
            chosen = [index for index in complete if output.entries[index].reader == reader]
            answers = reader.read(
                output.engine,
                [output.encodings[index] for index in chosen],
                [output.rows[index] for index in chosen],
            )
            yield from zip((output.entries[index] for index in chosen), answers, strict=True)

    @contextmanager
    def _report_failure(self, engine: Engine) -> Iterator[None]:
        """Tell of a pass if it fails here."""
        try:
            yield
        except Exception:
            self._notify(engine.id, None, failed=True)
            raise

    def _notify(self, checkpoint_id: str, seconds: float | None, *, failed: bool) -> None:
        for listener in self._listeners:
            listener.batch_finished(checkpoint_id, seconds=seconds, failed=failed)

    def _fail(self, entries: Sequence[QueueEntry], started_at: float, error: Exception) -> None:
        """Give a batch's error to its callers."""
        self._trace(entries, started_at, error=type(error).__name__)
        self._deliver([(entry, error) for entry in entries])

    def _trace(self, entries: Sequence[QueueEntry], started_at: float, **about: Any) -> Any:
        """Tell of a batch that is over, and return its span, if any of its texts has a trace that is kept."""
        if self._traces is None or not (calls := list(dict.fromkeys(entry.call for entry in entries if entry.call))):
            return None
        windows, tokens = sum(entry.windows for entry in entries), sum(entry.tokens for entry in entries)
        return self._traces.batch(calls, started_at, texts=len(entries), windows=windows, tokens=tokens, **about)

    def _deliver(self, results: Sequence[tuple[QueueEntry, Result[Any] | Exception]]) -> None:
        """Give answers to those who still wait for them, on the event loop."""
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

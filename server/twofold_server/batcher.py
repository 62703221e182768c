"""Many requests, one forward pass.

Texts wait in one queue, bounded in tokens. While the engine computes, the queue grows; when it is free, the next batch is
cut from what is there: batches form by back-pressure, and no timer adds latency to a quiet server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from twofold_checkpoint.encoding import Encoding

from twofold_server.engine import Engine, Floats, Output
from twofold_server.errors import ExpiredError, NotServingError, OverloadedError
from twofold_server.metrics import Metrics
from twofold_server.slices import slices
from twofold_server.slot import Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """Hold a text's output rows, one tuple for each window, with the engine that computed them and its encoding.

    *engine* is there for its labels; its session may be closed by now.
    """

    engine: Engine
    encoding: Encoding
    rows: list[tuple[Floats, ...]]
    batch: int
    """Number of the batch."""
    queue_seconds: float
    infer_seconds: float


@dataclass(slots=True, eq=False)
class Entry:
    """Hold one text that waits. *deadline* is in seconds of time.monotonic(), or infinite."""

    encoding: Encoding
    engine: Engine
    """The engine whose encoder made the encoding."""
    outputs: tuple[Output, ...]
    deadline: float
    answer: asyncio.Future[Result]
    arrived: float = field(default_factory=time.monotonic)
    windows: int = field(init=False)
    tokens: int = field(init=False)
    """Tokens of all windows."""
    longest: int = field(init=False)
    """Tokens of the longest window."""

    def __post_init__(self) -> None:
        lengths = [len(window.ids) for window in self.encoding.windows]
        self.windows, self.tokens, self.longest = len(lengths), sum(lengths), max(lengths)


def choose(queue: Sequence[Entry], max_tokens: int, pass_tokens: int) -> list[Entry]:
    """Choose the next batch from a queue in order of arrival.

    The oldest entry is always in it, so nothing starves. The others have the same outputs and about its length: all that
    wait are cut into passes, and the one with the oldest is next.
    """
    oldest = queue[0]
    alike = [entry for entry in queue if entry.outputs == oldest.outputs]
    cut = slices([(entry.windows, entry.longest) for entry in alike], max_tokens, pass_tokens)
    return next([alike[place] for place in places] for places in cut if 0 in places)


class Batcher:
    """Answer texts in batches, from one engine at a time.

    It is created and used on one event loop. Passes run on a thread of their own; a batch takes one lease, so it never
    mixes checkpoints, and a text's windows are never divided between two.
    """

    def __init__(self, slot: Slot, metrics: Metrics, *, max_batch_tokens: int, max_queue_tokens: int) -> None:
        self._slot = slot
        self._metrics = metrics
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._queue: list[Entry] = []
        self._queued_tokens = 0
        self._tokens_per_second = 10_000.0
        self._batches = 0
        self._arrival = asyncio.Event()
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop: asyncio.Task[None] | None = None
        self.observe: Callable[[float], None] = lambda _: None
        """Told the seconds of every batch; the interference watch listens here."""

    def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.create_task(self._run(), name="batcher")

    async def stop(self) -> None:
        """Answer what waits, then stop."""
        self._stopping = True
        self._arrival.set()
        if self._loop is not None:
            await self._loop
        self._thread.shutdown(wait=True)

    def submit(
        self, encodings: Sequence[Encoding], engine: Engine, outputs: tuple[Output, ...], deadline: float
    ) -> list[asyncio.Future[Result]]:
        """Queue a request's texts, all or none of them, and return their answers to wait for.

        Raises OverloadedError if the queue would grow too long, and NotServingError after stop(). An answer that is
        cancelled leaves the queue.
        """
        if self._stopping:
            raise NotServingError("the server is going away; ask another one")
        loop = asyncio.get_running_loop()
        entries = [Entry(encoding, engine, outputs, deadline, loop.create_future()) for encoding in encodings]
        tokens = sum(entry.tokens for entry in entries)
        if self._queued_tokens + tokens > self._max_queue_tokens:
            self._drop_dead()
        # An empty queue takes whatever comes, or a request above the bound could never be answered.
        if self._queue and self._queued_tokens + tokens > self._max_queue_tokens:
            self._metrics.shed.labels("queue").inc()
            raise OverloadedError(
                f"{self._queued_tokens} tokens wait, this request has {tokens}, and at most {self._max_queue_tokens} may "
                "wait; come back later, or send fewer texts at once",
                retry_after=self.wait_seconds(),
            )
        self._queue.extend(entries)
        self._count(tokens)
        self._arrival.set()
        return [entry.answer for entry in entries]

    def wait_seconds(self) -> float:
        """Guess how long the queue takes, for those who are sent away."""
        return min(30.0, max(0.05, self._queued_tokens / self._tokens_per_second))

    def _count(self, tokens: int) -> None:
        self._queued_tokens += tokens
        self._metrics.queue_tokens.set(self._queued_tokens)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._drop_dead()
            if not self._queue:
                if self._stopping:
                    return
                self._arrival.clear()
                await self._arrival.wait()
                continue
            engine = self._slot.live
            batch = choose(self._queue, self._max_batch_tokens, engine.pass_tokens if engine else 0)
            taken = set(batch)
            self._queue = [entry for entry in self._queue if entry not in taken]
            self._count(-sum(entry.tokens for entry in batch))
            try:
                results = await loop.run_in_executor(self._thread, self._compute, batch)
            except Exception as error:  # noqa: BLE001 -- whatever it was, only this batch's callers hear of it.
                for entry in batch:
                    if not entry.answer.done():
                        entry.answer.set_exception(error)
            else:
                for entry, result in zip(batch, results, strict=True):
                    if not entry.answer.done():
                        entry.answer.set_result(result)

    def _drop_dead(self) -> None:
        """Take out of the queue what nobody waits for any more."""
        now = time.monotonic()
        alive = []
        for entry in self._queue:
            # A caller whose deadline passes also cancels; the deadline is the cause.
            if entry.deadline <= now:
                self._metrics.dropped.labels("deadline").inc()
                if not entry.answer.done():
                    entry.answer.set_exception(ExpiredError("the deadline passed while the text waited for an engine"))
            elif entry.answer.cancelled():
                self._metrics.dropped.labels("cancelled").inc()
            else:
                alive.append(entry)
                continue
            self._count(-entry.tokens)
        self._queue = alive

    def _compute(self, batch: Sequence[Entry]) -> list[Result]:
        """Run a batch under one lease, on the engine's thread."""
        begun = time.monotonic()
        with self._slot.lease() as engine:
            encodings = _encodings_for(engine, batch)
            windows = [window for encoding in encodings for window in encoding.windows]
            rows = engine.run_windows(windows, batch[0].outputs, self._max_batch_tokens)
        seconds = time.monotonic() - begun
        self._note([len(window.ids) for window in windows], seconds)
        self._batches += 1
        results, first = [], 0
        for entry, encoding in zip(batch, encodings, strict=True):
            last = first + len(encoding.windows)
            results.append(Result(engine, encoding, rows[first:last], self._batches, begun - entry.arrived, seconds))
            self._metrics.stage_seconds.labels("queue").observe(begun - entry.arrived)
            first = last
        return results

    def _note(self, lengths: Sequence[int], seconds: float) -> None:
        tokens, padded = sum(lengths), len(lengths) * max(lengths)
        self._tokens_per_second += 0.2 * (tokens / max(seconds, 1e-6) - self._tokens_per_second)
        self._metrics.batch_windows.observe(len(lengths))
        self._metrics.batch_tokens.observe(padded)
        self._metrics.tokens.labels("text").inc(tokens)
        self._metrics.tokens.labels("padding").inc(padded - tokens)
        self._metrics.stage_seconds.labels("infer").observe(seconds)
        self.observe(seconds)


def _encodings_for(engine: Engine, batch: Iterable[Entry]) -> list[Encoding]:
    """Return the batch's encodings as this engine's encoder makes them.

    A text that was encoded before a swap is encoded again if the new checkpoint has another tokenizer.
    """
    return [
        entry.encoding
        if entry.engine.encoding_key == engine.encoding_key
        else engine.encoder.encode([entry.encoding.text])[0]
        for entry in batch
    ]

"""Queued texts, their results, and the selection of the next batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from twofold_checkpoint.encoding import Encoding

from twofold_server.inference.bucketing import split_into_passes
from twofold_server.inference.engine import Engine
from twofold_server.inference.tasks import Task
from twofold_server.observability.request_context import CallSpan

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Metadata shared by the results of one batch. Times are in seconds of time.monotonic()."""

    number: int
    checkpoint_id: str
    started_at: float
    infer_seconds: float
    decode_started_at: float
    decode_seconds: float
    span: Any = None
    """The tracing span of the batch, if any of its texts is traced."""


@dataclass(frozen=True, slots=True)
class Result(Generic[T]):
    """The answer to one text, its batch, and its time in the queue."""

    answer: T
    batch: Batch
    queue_seconds: float


@dataclass(slots=True, eq=False)
class QueueEntry:
    """One queued text. *deadline* is in seconds of time.monotonic(), or infinite."""

    encoding: Encoding
    engine: Engine
    """The engine whose encoder produced *encoding*."""
    task: Task[Any]
    deadline: float
    answer: asyncio.Future[Result[Any]]
    span: CallSpan | None = None
    """The span of the call that the text belongs to, if it is traced."""
    arrived: float = field(default_factory=time.monotonic)
    windows: int = field(init=False)
    tokens: int = field(init=False)
    """Total tokens of all windows."""
    longest: int = field(init=False)
    """Tokens of the longest window."""

    def __post_init__(self) -> None:
        lengths = [len(window.ids) for window in self.encoding.windows]
        self.windows, self.tokens, self.longest = len(lengths), sum(lengths), max(lengths)


def select_batch(
    queue: Sequence[QueueEntry], tokens: float, max_tokens: int, pass_overhead_tokens: int
) -> list[QueueEntry]:
    """Return the next batch from a queue in order of arrival.

    Candidates are the oldest entries that need the same outputs as the oldest one, up to *tokens* in total. They are split
    into passes of at most *max_tokens* padded tokens, and of similar length where padding would cost more than a further
    pass (*pass_overhead_tokens*). The batch is the pass with the oldest entry, so no entry starves.
    """
    outputs = queue[0].task.outputs
    oldest = list(_take_up_to((entry for entry in queue if entry.task.outputs == outputs), tokens))
    passes = split_into_passes([(entry.windows, entry.longest) for entry in oldest], max_tokens, pass_overhead_tokens)
    return next([oldest[index] for index in indices] for indices in passes if 0 in indices)


def _take_up_to(entries: Iterable[QueueEntry], tokens: float) -> Iterator[QueueEntry]:
    """Yield entries up to *tokens* in total, and at least one."""
    counted = 0
    for entry in entries:
        if counted and counted + entry.tokens > tokens:
            return
        counted += entry.tokens
        yield entry


def reencode_for(engine: Engine, batch: Iterable[QueueEntry]) -> list[Encoding]:
    """Return the encodings of a batch for this engine.

    A text that was encoded before a swap is encoded again if the new engine encodes differently.
    """
    return [
        entry.encoding
        if entry.engine.encoding_key == engine.encoding_key
        else engine.encoder.encode([entry.encoding.text])[0]
        for entry in batch
    ]

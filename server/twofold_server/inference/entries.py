"""A text that waits, its answer, and which of those that wait are next."""

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
from twofold_server.observability.request_context import Call

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the texts of a batch have in common: who answered, and when. Times are seconds of time.monotonic()."""

    number: int
    checkpoint_id: str
    started_at: float
    infer_seconds: float
    decode_started_at: float
    decode_seconds: float
    span: Any = None
    """What its trace knows it by, if a text in it has one."""


@dataclass(frozen=True, slots=True)
class Result(Generic[T]):
    """Hold a text's answer, the batch that it was in, and how long it waited for it."""

    answer: T
    batch: Batch
    queue_seconds: float


@dataclass(slots=True, eq=False)
class QueueEntry:
    """Hold one text that waits. *deadline* is in seconds of time.monotonic(), or infinite."""

    encoding: Encoding
    engine: Engine
    """The engine whose encoder made the encoding."""
    reader: Task[Any]
    deadline: float
    answer: asyncio.Future[Result[Any]]
    call: Call | None = None
    """The call that it is a part of, if that has a trace that is kept."""
    arrived: float = field(default_factory=time.monotonic)
    windows: int = field(init=False)
    tokens: int = field(init=False)
    """Tokens of all windows."""
    longest: int = field(init=False)
    """Tokens of the longest window."""

    def __post_init__(self) -> None:
        lengths = [len(window.ids) for window in self.encoding.windows]
        self.windows, self.tokens, self.longest = len(lengths), sum(lengths), max(lengths)


def select_batch(
    queue: Sequence[QueueEntry], tokens: float, max_tokens: int, pass_overhead_tokens: int
) -> list[QueueEntry]:
    """Choose the next batch from a queue in order of arrival: of the oldest ones, as many as have *tokens* together.

    The oldest entry is always in it, so nothing starves. The others have the same outputs and, where padding would cost
    more than another pass does (*pass_overhead_tokens*), about its length: they are cut into passes of at most *max_tokens* padded
    tokens, and the one with the oldest is next.
    """
    outputs = queue[0].reader.outputs
    oldest = list(_take_up_to((entry for entry in queue if entry.reader.outputs == outputs), tokens))
    passes = split_into_passes([(entry.windows, entry.longest) for entry in oldest], max_tokens, pass_overhead_tokens)
    return next([oldest[index] for index in indices] for indices in passes if 0 in indices)


def _take_up_to(entries: Iterable[QueueEntry], tokens: float) -> Iterator[QueueEntry]:
    """Yield entries up to so many tokens, and at least one."""
    counted = 0
    for entry in entries:
        if counted and counted + entry.tokens > tokens:
            return
        counted += entry.tokens
        yield entry


def reencode_for(engine: Engine, batch: Iterable[QueueEntry]) -> list[Encoding]:
    """Return the batch's encodings as this engine's encoder makes them.

    A text that was encoded before a swap is encoded again if the new checkpoint has another tokenizer.
    """
    return [
        entry.encoding
        if entry.engine.encoding_key == engine.encoding_key
        else engine.encoder.encode([entry.encoding.text])[0]
        for entry in batch
    ]

"""Texts that wait for a pass: how many may, for how long, and what is taken next. See ADR 36 for the bound in time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from twofold_server.errors import DeadlineExceededError, OverloadedError
from twofold_server.inference.entries import QueueEntry, select_batch
from twofold_server.inference.throughput import ThroughputEstimator
from twofold_server.observability.metrics import Metrics

_ADMISSION_SHARE, _QUEUE_SHARE, _PASS_SHARE = 0.4, 0.5, 0.25
"""Of the time in which a text is to be answered: how long it may be thought to wait for its pass when its call comes, and how
long when it is read and tokenized, by which time others came in, too; and what its pass may take. Without that difference
most of those who come in when there is a little room would be refused after all the work. The rest is for what was guessed
wrong."""


class RequestQueue:
    """Hold texts in order of arrival, bounded in tokens and in time. Empty, it takes whatever comes.

    It has no lock of its own; who changes it holds one.
    """

    def __init__(self, metrics: Metrics, throughput: ThroughputEstimator, *, max_tokens: int, max_wait: float) -> None:
        self._metrics = metrics
        self._throughput = throughput
        self._max_tokens = max_tokens
        self._max_wait = max_wait
        self._entries: list[QueueEntry] = []
        self.tokens = 0
        """Of all that wait."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def wait_seconds(self) -> float:
        """Guess how long it all takes, for those who are sent away."""
        # In steps, so that the same refusal need not be written a thousand times a second.
        return min(30.0, max(0.05, round(self._throughput.estimate_seconds(self.tokens), 1)))

    def check_time(self) -> None:
        """Raise OverloadedError if a text whose call comes now would probably wait too long."""
        self._check_time(_ADMISSION_SHARE)

    def has_room_for(self, tokens: int) -> bool:
        """Whether so many more are within the bound."""
        return self.tokens + tokens <= self._max_tokens

    def add(self, entries: Sequence[QueueEntry]) -> None:
        """Take a request's texts in, all or none of them. Raises OverloadedError."""
        tokens = sum(entry.tokens for entry in entries)
        self._check_time(_QUEUE_SHARE)
        # Empty, it takes whatever comes, or a request above the bound could never be answered.
        if self._entries and not self.has_room_for(tokens):
            self._metrics.shed.labels("queue").inc()
            raise OverloadedError(
                f"{self.tokens} tokens wait, this request has {tokens}, and at most "
                f"{self._max_tokens} may wait; come back later, or send fewer texts at once",
                retry_after=self.wait_seconds(),
            )
        self._entries.extend(entries)
        self._count(tokens)

    def next_batch(self, tokens: float, max_tokens: int, pass_overhead_tokens: int) -> list[QueueEntry]:
        """Take the next batch out: of the oldest, as many as have *tokens* together, or as a pass has the time for."""
        in_time = _PASS_SHARE * self._max_wait * self._throughput.tokens_per_second
        batch = select_batch(self._entries, min(tokens, in_time), max_tokens, pass_overhead_tokens)
        taken = set(batch)
        self._entries = [entry for entry in self._entries if entry not in taken]
        self._count(-sum(entry.tokens for entry in batch))
        return batch

    def drop_expired(self) -> list[tuple[QueueEntry, DeadlineExceededError]]:
        """Take out what nobody waits for any more, and return whose deadline passed, with the error for each."""
        now = time.monotonic()
        alive, expired = [], []
        for entry in self._entries:
            # A caller whose deadline passes also cancels; the deadline is the cause.
            if entry.deadline <= now:
                self._metrics.dropped.labels("deadline").inc()
                expired.append(
                    (entry, DeadlineExceededError("the deadline passed while the text waited for an engine"))
                )
            elif entry.answer.cancelled():
                self._metrics.dropped.labels("cancelled").inc()
            else:
                alive.append(entry)
                continue
            self._count(-entry.tokens)
        self._entries = alive
        return expired

    def _check_time(self, share: float) -> None:
        if self._entries and self._throughput.estimate_seconds(self.tokens) > share * self._max_wait:
            self._metrics.shed.labels("wait").inc()
            raise OverloadedError(
                f"what waits is as much as can be answered within {1000 * self._max_wait:.0f} ms; come back later",
                retry_after=self.wait_seconds(),
            )

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self._metrics.queue_tokens.set(self.tokens)

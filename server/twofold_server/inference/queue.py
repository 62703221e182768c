"""The request queue, bounded in tokens and in waiting time. See ADR 36 for the time limit."""

from __future__ import annotations

import time
from collections.abc import Sequence

from twofold_server.errors import DeadlineExceededError, OverloadedError
from twofold_server.inference.entries import QueueEntry, select_batch
from twofold_server.inference.throughput import ThroughputEstimator
from twofold_server.observability.metrics import Metrics

_ADMISSION_SHARE, _QUEUE_SHARE, _PASS_SHARE = 0.4, 0.5, 0.25
"""Shares of *max_wait*: the estimated wait at which a new call is rejected, the estimated wait at which a tokenized request is
rejected, and the maximum duration of a pass. The first is lower than the second because more requests arrive during tokenization;
otherwise most requests admitted to a nearly full queue would be rejected after that work. The remainder absorbs estimation
errors."""


class RequestQueue:
    """Texts in order of arrival, bounded in tokens and in time. An empty queue accepts any request.

    Not thread-safe: the caller must hold a lock.
    """

    def __init__(self, metrics: Metrics, throughput: ThroughputEstimator, *, max_tokens: int, max_wait: float) -> None:
        self._metrics = metrics
        self._throughput = throughput
        self._max_tokens = max_tokens
        self._max_wait = max_wait
        self._entries: list[QueueEntry] = []
        self.tokens = 0
        """Total tokens of the queued texts."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def wait_seconds(self) -> float:
        """Return the estimated seconds until the queue is empty, as a retry delay for rejected requests."""
        # Rounded, so that equal rejections can share one serialised response.
        return min(30.0, max(0.05, round(self._throughput.estimate_seconds(self.tokens), 1)))

    def check_time(self) -> None:
        """Raise OverloadedError if the text of a new call would probably wait too long."""
        self._check_time(_ADMISSION_SHARE)

    def has_room_for(self, tokens: int) -> bool:
        """Return whether *tokens* more are within the limit."""
        return self.tokens + tokens <= self._max_tokens

    def add(self, entries: Sequence[QueueEntry]) -> None:
        """Add all texts of a request, or none. Raises OverloadedError."""
        tokens = sum(entry.tokens for entry in entries)
        self._check_time(_QUEUE_SHARE)
        # An empty queue accepts any request; otherwise one above the limit could never be answered.
        if self._entries and not self.has_room_for(tokens):
            self._metrics.shed.labels("queue").inc()
            raise OverloadedError(
                f"the queue holds {self.tokens} of at most {self._max_tokens} tokens, and this request has {tokens}; "
                "retry later, or send fewer texts per request",
                retry_after=self.wait_seconds(),
            )
        self._entries.extend(entries)
        self._count(tokens)

    def next_batch(self, tokens: float, max_tokens: int, pass_overhead_tokens: int) -> list[QueueEntry]:
        """Remove and return the next batch: at most *tokens*, and no more than a pass may compute in its time limit."""
        pass_limit = _PASS_SHARE * self._max_wait * self._throughput.tokens_per_second
        batch = select_batch(self._entries, min(tokens, pass_limit), max_tokens, pass_overhead_tokens)
        taken = set(batch)
        self._entries = [entry for entry in self._entries if entry not in taken]
        self._count(-sum(entry.tokens for entry in batch))
        return batch

    def drop_expired(self) -> list[tuple[QueueEntry, DeadlineExceededError]]:
        """Remove expired and cancelled entries. Return the expired ones, each with its error."""
        now = time.monotonic()
        waiting, expired = [], []
        for entry in self._entries:
            # A client also cancels when its deadline passes; the deadline is the cause.
            if entry.deadline <= now:
                self._metrics.dropped.labels("deadline").inc()
                expired.append((entry, DeadlineExceededError("the deadline passed while the text was queued")))
            elif entry.answer.cancelled():
                self._metrics.dropped.labels("cancelled").inc()
            else:
                waiting.append(entry)
                continue
            self._count(-entry.tokens)
        self._entries = waiting
        return expired

    def _check_time(self, share: float) -> None:
        if self._entries and self._throughput.estimate_seconds(self.tokens) > share * self._max_wait:
            self._metrics.shed.labels("wait").inc()
            raise OverloadedError(
                f"the queue already holds about {1000 * self._max_wait:.0f} ms of work; retry later",
                retry_after=self.wait_seconds(),
            )

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self._metrics.queue_tokens.set(self.tokens)

"""What listens to requests and batches while they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BatchListener(Protocol):
    """Listen to every batch. Called on the batcher's threads, so it must be fast and thread-safe."""

    def batch_finished(self, checkpoint_id: str, *, seconds: float | None, failed: bool) -> None:
        """Take note of a batch that was answered or failed.

        *seconds* is the duration of the forward pass, None if the pass itself failed.
        """


class RequestListener(Protocol):
    """Listen to every request. Called on the event loop, so it must not block."""

    def request_admitted(self, texts: Sequence[str]) -> None:
        """Take note of the texts of a request that was admitted to the queue."""

    def request_finished(self, seconds: float) -> None:
        """Take note of a request that was answered, or that waited until its deadline."""

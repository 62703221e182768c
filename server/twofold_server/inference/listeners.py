"""Interfaces of listeners for requests and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BatchListener(Protocol):
    """A listener for batches. It is called on the batcher's threads, so it must be fast and thread-safe."""

    def batch_finished(self, checkpoint_id: str, *, seconds: float | None, failed: bool) -> None:
        """Handle a batch that was answered or failed.

        *seconds* is the duration of the forward pass, None if the pass itself failed.
        """


class TrafficMirror(Protocol):
    """A consumer of copies of live texts. It is called on the event loop, so it must not block."""

    def sample(self, texts: Sequence[str]) -> None:
        """Choose some of the texts of a request that was admitted to the queue."""


class RequestListener(Protocol):
    """A listener for requests. It is called on the event loop, so it must not block."""

    def request_finished(self, seconds: float) -> None:
        """Handle a request that was answered, or that waited until its deadline."""

"""What is told to whoever makes spans. That is spans.py, which nothing loads unless traces are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from twofold_server.calls import Call, Stage
from twofold_server.jobs import JobView


class Traces(Protocol):
    """Whoever makes spans. Nothing here blocks, or raises anything."""

    def begin(self, procedure: str, metadata: Iterable[tuple[str, str | bytes]]) -> Call:
        """Begin the span of a call, below the one that its metadata names if it names one."""

    def end(self, call: Call, code: str) -> None:
        """End it with the name of a gRPC code."""

    def tell(self, call: Call, stages: Iterable[Stage]) -> None:
        """Make a span below the call's for each of its stages."""

    def batch(self, calls: Sequence[Call], begun: float, *, error: str = "", **about: str | int) -> Any:
        """Make the span of a batch that has just ended, linked to its calls, and return what a Stage names it by."""

    def job(self, view: JobView) -> None:
        """Make the spans of a job that is over, linked to the call that asked for it."""

    def close(self) -> None:
        """Send what was not sent yet, for some seconds at most. This blocks."""

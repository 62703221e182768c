"""The interface of a tracer. Its implementation, otel.py, is loaded only if traces are configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from twofold_server.observability.request_context import Call, Stage

JOB_SPAN = "job"
"""The name of the root span of a job, which every sampler keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSpan:
    """Describe a span that has ended, with its children."""

    name: str
    started_at: datetime
    ended_at: datetime
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    error: str = ""
    """The kind of failure, such as FAILED; empty if there was none."""
    linked: str = ""
    """The W3C traceparent of the span that caused this one; empty if there is none."""
    children: tuple[FinishedSpan, ...] = ()


class Traces(Protocol):
    """A tracer. Only close() blocks, and no method raises."""

    def begin(self, procedure: str, metadata: Iterable[tuple[str, str | bytes]]) -> Call:
        """Begin the span of a call, below the one that its metadata names if it names one."""

    def end(self, call: Call, code: str) -> None:
        """End it with the name of a gRPC code."""

    def tell(self, call: Call, stages: Iterable[Stage]) -> None:
        """Make a span below the call's for each of its stages."""

    def batch(self, calls: Sequence[Call], started_at: float, *, error: str = "", **about: str | int) -> Any:
        """Make the span of a batch that has just ended, linked to its calls, and return what a Stage names it by."""

    def add_finished(self, span: FinishedSpan) -> None:
        """Record a span that has ended, with its children, as a trace of its own."""

    def close(self) -> None:
        """Send what was not sent yet, for some seconds at most. This blocks."""

"""The interface of a tracer. Its implementation, otel.py, is loaded only if tracing is configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from twofold_server.observability.request_context import CallSpan, CallStage

JOB_SPAN = "job"
"""The name of the root span of a job, which every sampler keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSpan:
    """A span that has ended, with its children."""

    name: str
    started_at: datetime
    ended_at: datetime
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    error: str = ""
    """The kind of failure, such as FAILED; empty if there was none."""
    linked_traceparent: str = ""
    """The W3C traceparent of the span that caused this one; empty if there is none."""
    children: tuple[FinishedSpan, ...] = ()


class Tracer(Protocol):
    """A tracer. Only close() blocks, and no method raises."""

    def start_call(self, procedure: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan:
        """Start the span of a call, as a child of the span in its metadata, if there is one."""

    def end_call(self, call: CallSpan, code: str) -> None:
        """End the span with the name of a gRPC status code."""

    def add_stages(self, call: CallSpan, stages: Iterable[CallStage]) -> None:
        """Create a child span for each stage of a call."""

    def add_batch(
        self, calls: Sequence[CallSpan], started_at: float, *, error: str = "", **attributes: str | int
    ) -> Any:
        """Create the span of a batch that just ended, linked to its calls, and return the context for CallStage.batch_span."""

    def add_finished(self, span: FinishedSpan) -> None:
        """Record a span that has ended, with its children, as a trace of its own."""

    def close(self) -> None:
        """Export the remaining spans. Blocks for a few seconds at most."""

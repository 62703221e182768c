"""The context of the current call: its request id, its trace context and the ids of its objects.

Without tracing there is no CallSpan, so code checks for a single None. See ADR 30.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""The form of a request id that may be logged."""


@dataclass(frozen=True, slots=True, eq=False)
class CallSpan:
    """The span of a call in progress, and its trace context."""

    span: Any
    """The span object of the tracer's library."""
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    is_sampled: bool
    """Whether the spans of the call are recorded. The ids are valid for logs in both cases."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Ids of the call's job or checkpoint, by kind."""

    @property
    def traceparent(self) -> str:
        """The W3C traceparent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}"


class RequestId:
    """The request id of a call for log lines. Created on first use, because most calls log nothing."""

    def __init__(self, context: Any) -> None:
        self._context = context

    @cached_property
    def value(self) -> str:
        """The client's `x-request-id` if it is well-formed, else a generated id."""
        sent = next((value for key, value in self._context.invocation_metadata() or () if key == "x-request-id"), "")
        return sent if isinstance(sent, str) and PLAIN_ID.fullmatch(sent) else secrets.token_hex(8)


CLOCK_SKEW_SECONDS = 0.01
"""How many seconds before its deadline a client may cancel, because its clock is ahead."""

REQUEST_ID: ContextVar[RequestId | None] = ContextVar("request", default=None)
"""The request id of the current call; None outside of calls."""

CALL_SPAN: ContextVar[CallSpan | None] = ContextVar("call", default=None)
"""The span of the current call; None without tracing, and outside of calls."""


def sampled_span() -> CallSpan | None:
    """Return the span of the current call if it is sampled."""
    span = CALL_SPAN.get()
    return span if span is not None and span.is_sampled else None


@dataclass(frozen=True, slots=True)
class CallStage:
    """A finished stage of a call. Times are seconds of time.monotonic()."""

    name: str
    started_at: float
    seconds: float
    batch_span: Any = None
    """The span of its batch, if it has one."""

"""The context of the current call: its request id, its trace context and the ids of its objects.

Without tracing there is no Call, so code checks for a single None. See ADR 30.
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
class Call:
    """The trace context of a call in progress."""

    span: Any
    """The tracer's span object."""
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    is_recorded: bool
    """Whether its spans are recorded. The ids are valid for logs in both cases."""
    about: dict[str, str] = field(default_factory=dict)
    """Ids of the call's job or checkpoint, by kind."""

    @property
    def traceparent(self) -> str:
        """The W3C traceparent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.is_recorded:02x}"


class Request:
    """The id of a call for log lines. It is created when a line is written, because most calls write none."""

    def __init__(self, context: Any) -> None:
        self._context = context

    @cached_property
    def id(self) -> str:
        """The client's `x-request-id` if it is well-formed, else a generated id."""
        sent = next((value for key, value in self._context.invocation_metadata() or () if key == "x-request-id"), "")
        return sent if isinstance(sent, str) and PLAIN_ID.fullmatch(sent) else secrets.token_hex(8)


REQUEST: ContextVar[Request | None] = ContextVar("request", default=None)
"""The current request; None outside of calls."""

CALL: ContextVar[Call | None] = ContextVar("call", default=None)
"""The current call; None without tracing, and outside of calls."""


def recorded() -> Call | None:
    """Return the current call if its spans are recorded."""
    call = CALL.get()
    return call if call is not None and call.is_recorded else None


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage of a call. Times are seconds of time.monotonic()."""

    name: str
    started_at: float
    seconds: float
    batch: Any = None
    """The span of its batch, if it has one."""

"""The call in progress, as whoever works for it sees it: its id, where it stands in its trace, and what it is about.

Without traces there is no Call, and that is one None to look at. See ADR 30.
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
    """A call in progress, and where it stands in its trace."""

    span: Any
    """What the maker of spans knows it by."""
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    is_recorded: bool
    """Whether its spans are kept. The ids are good for logs if they are not, too."""
    about: dict[str, str] = field(default_factory=dict)
    """What it is about: the ids of a job or a checkpoint, by their kind."""

    @property
    def traceparent(self) -> str:
        """Where it stands, as W3C Trace Context writes it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.is_recorded:02x}"


class Request:
    """A call in progress, by the id that log lines name it by. It is made when a line is written; most calls write none."""

    def __init__(self, context: Any) -> None:
        self._context = context

    @cached_property
    def id(self) -> str:
        """What the caller sent as `x-request-id` if that is a plain id, else one of our own."""
        sent = next((value for key, value in self._context.invocation_metadata() or () if key == "x-request-id"), "")
        return sent if isinstance(sent, str) and PLAIN_ID.fullmatch(sent) else secrets.token_hex(8)


REQUEST: ContextVar[Request | None] = ContextVar("request", default=None)
"""The call in progress; None outside of calls."""

CALL: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call in progress; None without traces, and outside of calls."""


def recorded() -> Call | None:
    """Return the call in progress if its spans are kept."""
    call = CALL.get()
    return call if call is not None and call.is_recorded else None


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a call that is over. Times are seconds of time.monotonic()."""

    name: str
    started_at: float
    seconds: float
    batch: Any = None
    """The span of the batch that it was a part of, if it was."""

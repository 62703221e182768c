"""The audit log: one line, on its own logger, for each call that changes what is served or trained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from twofold_server.errors import status_of
from twofold_server.observability.request_context import CALL, PLAIN_ID

log = logging.getLogger("twofold_server.audit")

AUDITED: Mapping[str, str] = MappingProxyType(
    {
        "/twofold.v1.AdaptationService/Adapt": "adapt",
        "/twofold.v1.AdaptationService/CancelJob": "cancel",
        "/twofold.v1.CheckpointService/PromoteCheckpoint": "promote",
        "/twofold.v1.CheckpointService/RollBack": "roll back",
        "/twofold.v1.CheckpointService/DeleteCheckpoint": "delete",
        "/inference.GRPCInferenceService/RepositoryModelLoad": "promote",
    }
)
"""The action of each audited procedure, by path. All of them are unary."""

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""The name of the current call's token; empty if it has none."""

_ABOUT: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_LONGEST_SUBJECT = 200


def note(**about: str) -> None:
    """Add the id of a job or checkpoint to the call's audit line and trace. Text that is not a valid id is left out."""
    known = {key: value if PLAIN_ID.fullmatch(value) else "(no id)" for key, value in about.items()}
    if (line := _ABOUT.get()) is not None:
        line.update(known)
    if call := CALL.get():
        call.about.update(known)


def tell(action: str, *, who: str, outcome: str, **about: str) -> None:
    """Log an action that no call caused."""
    log.info(action, extra={"who": who, "outcome": outcome, **about})


def audited(procedure: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Wrap a behaviour so that its call is logged when it ends, with any outcome."""
    action = AUDITED[procedure]

    async def call(request: Any, context: Any) -> Any:
        about: dict[str, str] = {}
        _ABOUT.set(about)
        outcome = "OK"
        try:
            return await behaviour(request, context)
        except asyncio.CancelledError:
            outcome = "CANCELLED"
            raise
        except Exception as error:
            code, reason = status_of(error)
            outcome, about["reason"] = code.name, reason
            raise
        finally:
            tell(action, who=caller_of(context), outcome=outcome, **about)

    return call


def caller_of(context: Any) -> str:
    """Return the caller: the token's name, else the certificate's subject, else "anonymous"."""
    if name := CALLER.get():
        return name
    shown = context.auth_context().get("x509_subject") or (b"",)
    return bytes(next(iter(shown))).decode(errors="replace")[:_LONGEST_SUBJECT] or "anonymous"

"""The audit log: one line, on its own logger, for each call that changes what is served or trained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from twofold_server.errors import status_of
from twofold_server.observability.request_context import CALL_SPAN, PLAIN_ID

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

_ATTRIBUTES: ContextVar[dict[str, str] | None] = ContextVar("attributes", default=None)
_MAX_SUBJECT_LENGTH = 200


def annotate(**attributes: str) -> None:
    """Add the id of a job or checkpoint to the call's audit line and trace. Text that is not a valid id is omitted."""
    ids = {key: value if PLAIN_ID.fullmatch(value) else "(invalid id)" for key, value in attributes.items()}
    if (line := _ATTRIBUTES.get()) is not None:
        line.update(ids)
    if span := CALL_SPAN.get():
        span.attributes.update(ids)


def log_audit(action: str, *, actor: str, outcome: str, **attributes: str) -> None:
    """Log an action that no call caused."""
    log.info(action, extra={"actor": actor, "outcome": outcome, **attributes})


def with_audit(procedure: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Wrap a behaviour so that its call is logged when it ends, with any outcome."""
    action = AUDITED[procedure]

    async def call(request: Any, context: Any) -> Any:
        attributes: dict[str, str] = {}
        _ATTRIBUTES.set(attributes)
        outcome = "OK"
        try:
            return await behaviour(request, context)
        except asyncio.CancelledError:
            outcome = "CANCELLED"
            raise
        except Exception as error:
            code, reason = status_of(error)
            outcome, attributes["reason"] = code.name, reason
            raise
        finally:
            log_audit(action, actor=caller_of(context), outcome=outcome, **attributes)

    return call


def caller_of(context: Any) -> str:
    """Return the caller: the token's name, else the certificate's subject, else "anonymous"."""
    if name := CALLER.get():
        return name
    subjects = context.auth_context().get("x509_subject") or (b"",)
    return bytes(next(iter(subjects))).decode(errors="replace")[:_MAX_SUBJECT_LENGTH] or "anonymous"

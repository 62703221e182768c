"""Authorization: the scopes that each procedure requires, and the check of the caller's token."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from twofold_server.errors import RateLimitedError, ScopeMissingError, UnauthenticatedError
from twofold_server.observability.audit import CALLER
from twofold_server.observability.metrics import Metrics
from twofold_server.security.file_watcher import FileWatcher
from twofold_server.security.rate_limit import RateLimit
from twofold_server.security.tokens import SCOPES, Grant, Scope, find_grant, read_tokens

log = logging.getLogger(__name__)

Requirement = Scope | Literal["open", "token"]
"""What a procedure requires of its caller: nothing, any token, or a token with a scope."""

_REQUIREMENTS: Mapping[str, Mapping[str, Requirement]] = {
    "twofold.v1.InferenceService": {
        "Predict": "predict",
        "PredictStream": "predict",
        "Embed": "predict",
        "GetModel": "predict",
    },
    "twofold.v1.AdaptationService": {
        "Adapt": "adapt",
        "UploadDataset": "adapt",
        "GetJob": "adapt",
        "GetReport": "adapt",
        "ListJobs": "adapt",
        "WatchJob": "adapt",
        "CancelJob": "adapt",
    },
    "twofold.v1.CheckpointService": {
        "GetCheckpoint": "token",
        "ListCheckpoints": "token",
        "ListAliasChanges": "token",
        "PromoteCheckpoint": "admin",
        "RollBack": "admin",
        "DeleteCheckpoint": "admin",
    },
    "inference.GRPCInferenceService": {
        "ServerLive": "open",  # These two return what health returns.
        "ServerReady": "open",
        "ModelReady": "predict",
        "ServerMetadata": "predict",
        "ModelMetadata": "predict",
        "ModelConfig": "predict",
        "ModelInfer": "predict",
        "ModelStatistics": "predict",
        "RepositoryIndex": "token",
        "RepositoryModelLoad": "admin",
        # The following procedures only return what to call instead.
        "ModelStreamInfer": "token",
        "RepositoryModelUnload": "token",
        "SystemSharedMemoryStatus": "token",
        "SystemSharedMemoryRegister": "token",
        "SystemSharedMemoryUnregister": "token",
        "CudaSharedMemoryStatus": "token",
        "CudaSharedMemoryRegister": "token",
        "CudaSharedMemoryUnregister": "token",
        "TraceSetting": "token",
        "LogSettings": "token",
    },
    "grpc.health.v1.Health": {"Check": "open", "List": "open", "Watch": "open"},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": "token"},
}
REQUIRED_SCOPES: Mapping[str, Requirement] = MappingProxyType(
    {f"/{service}/{method}": scope for service, methods in _REQUIREMENTS.items() for method, scope in methods.items()}
)
"""The requirement of each procedure, by path."""

_CHECK_SECONDS = 1.0
"""Seconds between two checks of the token file."""

Behaviour = Callable[[Any, Any], Any]
"""A method's behaviour: takes a request or a stream of requests, returns an awaitable or an iterator of responses."""


class Authorizer:
    """Authorizes callers by their tokens. A changed file is read again; an invalid file leaves the tokens unchanged.

    Raises OSError or ValueError if the file is invalid at the start.
    """

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path = path
        self._shed = metrics.shed.labels("rate")
        self._watcher = FileWatcher(path)
        self._next_check = time.monotonic() + _CHECK_SECONDS
        self._grants: Mapping[str, Grant] = {}
        self._limits: Mapping[str, RateLimit] = {}
        self._read()

    def wrap(self, procedure: str, behaviour: Behaviour, *, streams: bool) -> Behaviour:
        """Wrap a behaviour with the check of the caller's token. *streams*: its requests are a stream."""
        requirement = REQUIRED_SCOPES.get(procedure, "admin")  # A test checks that the table is complete.
        if requirement == "open":
            return behaviour
        scopes: tuple[Scope, ...] = () if requirement == "token" else (requirement,)

        # Not a coroutine, so that it wraps unary and streaming responses alike.
        def authorized(request: Any, context: Any) -> Any:
            limit = self.authorize(scopes, context.invocation_metadata())
            return behaviour(limit.throttle(request) if limit and streams else request, context)

        return authorized

    def authorize(self, scopes: Collection[Scope], metadata: Iterable[tuple[str, str | bytes]]) -> RateLimit | None:
        """Check that the token has one of the *scopes*, or is any valid token if there are none, and return its rate limit.

        Raises UnauthenticatedError, ScopeMissingError or RateLimitedError.
        """
        if time.monotonic() > self._next_check:
            self._reload_if_changed()
        token = _bearer(metadata)
        if token is None:
            raise UnauthenticatedError("the call has no token; send metadata `authorization: Bearer TOKEN`")
        match = find_grant(token, self._grants)
        if match is None:
            raise UnauthenticatedError(
                "the token is unknown or was revoked; ask the operator of this server for a new token"
            )
        name, grant = match
        CALLER.set(name)
        if scopes and grant.scopes.isdisjoint(scopes):
            has = ", ".join(scope for scope in SCOPES if scope in grant.scopes)
            needs = " or ".join(map(repr, scopes))
            raise ScopeMissingError(
                f"token {name!r} has scope {has}, but this call needs {needs}; use a token with that scope"
            )
        limit = self._limits.get(name)
        if limit and (wait := limit.take()):
            self._shed.inc()
            raise RateLimitedError(
                f"token {name!r} is limited to {grant.requests_per_second:g} requests per second; retry later",
                retry_after=wait,
            )
        return limit

    def _reload_if_changed(self) -> None:
        self._next_check = time.monotonic() + _CHECK_SECONDS
        if not self._watcher.has_changed():
            return
        try:
            self._read()
        except (OSError, ValueError) as error:
            log.error("token file is invalid; the previous tokens stay in force", extra={"reason": str(error)})  # noqa: TRY400 -- no bug of ours.
        else:
            log.info("tokens reloaded", extra={"tokens": len(self._grants)})

    def _read(self) -> None:
        grants = read_tokens(self._path)
        rates = {name: grant.requests_per_second for name, grant in grants.items()}
        # Changing another line of the file must not reset a used-up limit.
        self._limits = {
            name: limit if (limit := self._limits.get(name)) and limit.rate == rate else RateLimit(rate)
            for name, rate in rates.items()
            if rate
        }
        self._grants = grants


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the first bearer token in the metadata, which may be malformed, or None."""
    for key, value in metadata:
        if key == "authorization":
            scheme, _, token = str(value).partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None

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

_TABLE: Mapping[str, Mapping[str, Requirement]] = {
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
    {f"/{service}/{method}": need for service, methods in _TABLE.items() for method, need in methods.items()}
)
"""The requirement of each procedure, by path."""

_LOOK_AGAIN = 1.0
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
        self._watched = FileWatcher(path)
        self._look_at = time.monotonic() + _LOOK_AGAIN
        self._grants: Mapping[str, Grant] = {}
        self._limits: Mapping[str, RateLimit] = {}
        self._read()

    def guard(self, procedure: str, behaviour: Behaviour, *, streams: bool) -> Behaviour:
        """Wrap a behaviour with the check of the caller's token. *streams*: its requests are a stream."""
        need = REQUIRED_SCOPES.get(
            procedure, "admin"
        )  # A test checks that the table is complete; a missing procedure would not be open.
        if need == "open":
            return behaviour

        # Not a coroutine, so that it wraps unary and streaming responses alike.
        scopes: tuple[Scope, ...] = () if need == "token" else (need,)

        def guarded(request: Any, context: Any) -> Any:
            limit = self.admit(scopes, context.invocation_metadata())
            return behaviour(limit.pace(request) if limit and streams else request, context)

        return guarded

    def admit(self, scopes: Collection[Scope], metadata: Iterable[tuple[str, str | bytes]]) -> RateLimit | None:
        """Check that the token has one of the *scopes*, or is any valid token if there are none, and return its rate limit.

        Raises UnauthenticatedError, ScopeMissingError or RateLimitedError.
        """
        if time.monotonic() > self._look_at:
            self._look_again()
        token = _bearer(metadata)
        if token is None:
            raise UnauthenticatedError("the call has no token; send metadata `authorization: Bearer TOKEN`")
        match = find_grant(token, self._grants)
        if match is None:
            raise UnauthenticatedError("the token is not known here, or not any more; ask this server's owner for one")
        name, grant = match
        CALLER.set(name)
        if scopes and grant.scopes.isdisjoint(scopes):
            has = ", ".join(scope for scope in SCOPES if scope in grant.scopes)
            needs = " or ".join(map(repr, scopes))
            raise ScopeMissingError(f"token {name!r} may {has}, and this needs {needs}; use a token with that scope")
        limit = self._limits.get(name)
        if limit and (wait := limit.take()):
            self._shed.inc()
            raise RateLimitedError(
                f"token {name!r} may send {grant.requests_per_second:g} requests a second; send fewer, or later",
                retry_after=wait,
            )
        return limit

    def _look_again(self) -> None:
        self._look_at = time.monotonic() + _LOOK_AGAIN
        if not self._watched.has_changed():
            return
        try:
            self._read()
        except (OSError, ValueError) as error:
            log.error("the tokens are wrong, the old ones stay in force", extra={"reason": str(error)})  # noqa: TRY400 -- no bug of ours.
        else:
            log.info("tokens read again", extra={"tokens": len(self._grants)})

    def _read(self) -> None:
        grants = read_tokens(self._path)
        rates = {name: grant.requests_per_second for name, grant in grants.items()}
        kept = {name for name, rate in rates.items() if name in self._grants and rate == self._rate(name)}
        # A used-up limit is not reset when another line of the file changes.
        self._limits = {
            name: self._limits[name] if name in kept else RateLimit(rate) for name, rate in rates.items() if rate
        }
        self._grants = grants

    def _rate(self, name: str) -> float | None:
        return self._grants[name].requests_per_second


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the first bearer token in the metadata, which may be malformed, or None."""
    for key, value in metadata:
        if key == "authorization":
            scheme, _, token = str(value).partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None

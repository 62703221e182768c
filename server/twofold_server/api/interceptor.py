"""The interceptor of every call: counts it, times it, and turns domain errors into status codes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from twofold import status

from twofold_server.errors import BUG, InvalidRequestError, NotServingError, OverloadedError, Violation, status_of
from twofold_server.observability.audit import AUDITED, audited
from twofold_server.observability.metrics import Metrics
from twofold_server.observability.request_context import CALL, REQUEST, Call, Request
from twofold_server.observability.tracing import Traces
from twofold_server.security.authorization import Authorizer

log = logging.getLogger(__name__)

_OURS = ("/twofold.", "/inference.", "/grpc.reflection.")
_HEALTH = "/grpc.health."
_ARITY = {False: "unary", True: "stream"}
_END = object()

# The client's clock may be ahead by this many seconds when it gives up at its deadline.
_CLOCKS_DIFFER = 0.01

# An error is sent in trailers, of which clients accept 8 KiB.
_MOST_VIOLATIONS = 10
_LONGEST_MESSAGE = 300

_RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata with the delay in milliseconds after which gRPC clients with a retry policy retry (gRFC A6)."""

_EXPECTED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
)
"""Status codes that alerts use."""


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method. An unknown exception becomes INTERNAL, without details of the server.

    Health calls are not counted. With *access*, each call needs a valid token; without it, tokens are ignored. *rooms* maps the
    procedures that are shed under load to checks that raise OverloadedError. They run before the token and the message are
    read, because most calls are rejected when the server is busiest.
    """

    def __init__(
        self,
        metrics: Metrics,
        methods: Iterable[str] = (),
        access: Authorizer | None = None,
        traces: Traces | None = None,
        rooms: Mapping[str, Callable[[], None]] | None = None,
    ) -> None:
        self._metrics = metrics
        self._access = access
        self._traces = traces
        self._rooms = rooms or {}
        self._leaving = asyncio.Event()
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        # Export zeros: a counter that appears with its first error hides that error from rate().
        for method in methods:
            for code in _EXPECTED:
                metrics.requests.labels(method, code.name)

    def hang_up(self) -> None:
        """End response streams with UNAVAILABLE. They would otherwise delay the shutdown."""
        self._leaving.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the method's handler, wrapped."""
        name = str(handler_call_details.method)
        if check_room := self._rooms.get(name):
            try:
                check_room()
            except OverloadedError as error:
                return self._shed(name.rpartition("/")[2], error)
        if name in self._handlers:
            return self._handlers[name]
        handler = await continuation(handler_call_details)
        if handler is None or not name.startswith((*_OURS, _HEALTH)):
            return handler
        kind = f"{_ARITY[handler.request_streaming]}_{_ARITY[handler.response_streaming]}"
        read = _reader(handler.request_deserializer, handler.request_streaming)
        behaviour = getattr(handler, kind)
        if self._access:
            behaviour = self._access.guard(name, _reading(behaviour, read), streams=handler.request_streaming)
            read = _as_it_is
        if name in AUDITED:  # Outside the access check, so that rejected calls are audited too.
            behaviour, read = audited(name, _reading(behaviour, read)), _as_it_is
        wrap = self._around_stream if handler.response_streaming else self._around
        if name.startswith(_HEALTH):
            wrap = _around_health
        # The request is parsed inside the wrapper, so that a malformed request is counted and explained too.
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        made: grpc.RpcMethodHandler[Any, Any] = make(wrap(behaviour, read, name), None, handler.response_serializer)
        self._handlers[name] = made
        return made

    def _shed(self, method: str, error: OverloadedError) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler that rejects a call. It takes a stream of requests, because grpcio does not wait for those."""
        self._metrics.requests.labels(method, status_of(error)[0].name).inc()
        self._metrics.request_seconds.labels(method).observe(0)

        async def refuse(_requests: Any, context: Any) -> None:
            await _abort(error, method, context)

        return grpc.stream_unary_rpc_method_handler(refuse)

    def _around(self, behaviour: Any, read: Callable[[Any], Any], procedure: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            async with _Call(self._metrics, procedure, context, self._traces):
                return await behaviour(read(request), context)

        return call

    def _around_stream(self, behaviour: Any, read: Callable[[Any], Any], procedure: str) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with (
                _Call(self._metrics, procedure, context, self._traces),
                contextlib.aclosing(behaviour(read(request), context)) as answers,
                contextlib.aclosing(self._until_leaving(answers)) as responses,
            ):
                async for response in responses:
                    yield response

        return call

    async def _until_leaving(self, responses: AsyncIterator[Any]) -> AsyncGenerator[Any]:
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            while True:
                following = asyncio.ensure_future(anext(responses, _END))
                try:
                    await asyncio.wait((following, leaving), return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError:
                    await _end(following)
                    raise
                if not following.done():
                    await _end(following)
                if following.cancelled():
                    raise NotServingError("the server is going away; call another one")
                response = following.result()
                if response is _END:
                    return
                yield response
        finally:
            leaving.cancel()


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it has ended, so that its work ends before its call does."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _reader(deserialize: Callable[[bytes], Any] | None, streams: bool) -> Callable[[Any], Any]:
    """Return a parser for the bytes of a request or of a stream of requests. It raises InvalidRequestError."""

    def read(request: bytes) -> Any:
        try:
            return deserialize(request) if deserialize else request
        except DecodeError as error:
            raise InvalidRequestError(
                Violation("request", "cannot be read; send the message of the service's .proto, with text in UTF-8")
            ) from error

    async def read_all(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield read(request)

    return read_all if streams else read


def _reading(behaviour: Any, read: Callable[[Any], Any]) -> Any:
    """Let a behaviour parse its own request, so that earlier checks can reject a request that was not parsed."""
    return lambda request, context: behaviour(read(request), context)


def _as_it_is(request: Any) -> Any:
    return request


def _around_health(behaviour: Any, read: Callable[[Any], Any], procedure: str) -> Any:
    """Convert errors, but count nothing, because probes call often. In grpcio's health servicer a watch is a coroutine too."""

    async def call(request: Any, context: Any) -> Any:
        try:
            return await behaviour(read(request), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 -- what is not known becomes INTERNAL.
            await _abort(error, procedure, context)

    return call


class _Call:
    """The scope of one call, from its first byte to its status."""

    def __init__(self, metrics: Metrics, procedure: str, context: Any, traces: Traces | None) -> None:
        self._metrics = metrics
        self._procedure = procedure
        self._method = procedure.rpartition("/")[2]
        self._context = context
        self._traces = traces
        self._traced: Call | None = None
        self._started_at = time.monotonic()

    async def __aenter__(self) -> None:
        self._metrics.in_flight.labels(self._method).inc()
        REQUEST.set(Request(self._context))
        if self._traces:
            self._traced = self._traces.begin(self._procedure, self._context.invocation_metadata() or ())
            CALL.set(self._traced)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._metrics.in_flight.labels(self._method).dec()
        self._metrics.request_seconds.labels(self._method).observe(time.monotonic() - self._started_at)
        code = self._code_of(error)
        self._metrics.requests.labels(self._method, code.name).inc()
        if self._traces and self._traced:
            self._traces.end(self._traced, code.name)
        # A call that the servicer aborted, or that was cancelled, already has its status.
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            await _abort(error, self._method, self._context)

    def _code_of(self, error: BaseException | None) -> grpc.StatusCode:
        if isinstance(
            error, (asyncio.CancelledError, GeneratorExit)
        ):  # InternalError: the client left while it was being answered.
            remaining = self._context.time_remaining()
            expired = remaining is not None and remaining < _CLOCKS_DIFFER
            return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
        if isinstance(error, grpc.aio.AbortError):
            aborted = self._context.code()
            return aborted if isinstance(aborted, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
        if isinstance(error, NotImplementedError):
            return grpc.StatusCode.UNIMPLEMENTED
        return grpc.StatusCode.OK if error is None else status_of(error)[0]


async def _abort(error: Exception, method: str, context: Any) -> None:
    """End a call with the status of an error."""
    if isinstance(error, NotImplementedError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} comes in a later version")
    code, reason = status_of(error)
    message, metadata = _shorten(str(error)), {}
    if (code, reason) == BUG:
        number = (REQUEST.get() or Request(context)).id
        log.error("unexpected error", exc_info=error, extra={"method": method, "request": number})
        message, metadata = f"internal error; the server's log has it under request {number}", {"request": number}
    violations = error.violations[:_MOST_VIOLATIONS] if isinstance(error, InvalidRequestError) else ()
    pushback: tuple[tuple[str, str], ...] = ()
    if isinstance(error, OverloadedError):
        details = _encode_overload(code.value[0], message, reason, error.retry_after)
        pushback = ((_RETRY_PUSHBACK, str(math.ceil(1000 * error.retry_after))),)
    else:
        wrong = [
            status.FieldViolation(field=violation.field, description=_shorten(violation.description))
            for violation in violations
        ]
        details = status.encode_status(code.value[0], message, reason=reason, violations=wrong, metadata=metadata)
    try:
        await context.abort(code, message, trailing_metadata=((status.METADATA_KEY, details), *pushback))
    except grpc.aio.InternalError as gone:  # The client has left; grpcio would log this as a server error.
        raise asyncio.CancelledError from gone


@lru_cache(64)
def _encode_overload(code: int, message: str, reason: str, retry_after: float) -> bytes:
    """Encode a rejection under load. It is cached, because it is repeated when the server is busiest."""
    return status.encode_status(code, message, reason=reason, retry_after=retry_after)


def _shorten(text: str) -> str:
    """Put a message on one line of bounded length."""
    line = " ".join(text[: 4 * _LONGEST_MESSAGE].split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}..."

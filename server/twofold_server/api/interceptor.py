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

from twofold_server.errors import (
    INTERNAL_ERROR,
    InvalidRequestError,
    NotServingError,
    OverloadedError,
    Violation,
    status_of,
)
from twofold_server.observability.audit import AUDITED, with_audit
from twofold_server.observability.metrics import Metrics
from twofold_server.observability.request_context import CALL_SPAN, CLOCK_SKEW_SECONDS, REQUEST_ID, CallSpan, RequestId
from twofold_server.observability.tracing import Tracer
from twofold_server.security.authorization import Authorizer

log = logging.getLogger(__name__)

_SERVICE_PREFIXES = ("/twofold.", "/inference.", "/grpc.reflection.")
_HEALTH_PREFIX = "/grpc.health."
_ARITY = {False: "unary", True: "stream"}
_END = object()

# An error is sent in trailers, of which clients accept 8 KiB.
_MAX_VIOLATIONS = 10
_MAX_MESSAGE_LENGTH = 300

_RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata with the delay in milliseconds after which gRPC clients with a retry policy retry (gRFC A6)."""

_ALERT_CODES = (
    grpc.StatusCode.OK,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
)
"""Status codes that the alerts use."""


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method. An unknown exception becomes INTERNAL, without details of the server.

    Health calls are not counted. With *authorizer*, each call needs a valid token; without it, tokens are ignored. *load_checks*
    maps the procedures that are rejected under load to checks that raise OverloadedError. They run before the token and the
    message are read, because most calls are rejected when the server is busiest.
    """

    def __init__(
        self,
        metrics: Metrics,
        methods: Iterable[str] = (),
        authorizer: Authorizer | None = None,
        tracer: Tracer | None = None,
        load_checks: Mapping[str, Callable[[], None]] | None = None,
    ) -> None:
        self._metrics = metrics
        self._authorizer = authorizer
        self._tracer = tracer
        self._load_checks = load_checks or {}
        self._shutdown = asyncio.Event()
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        # Export zeros: a counter that appears with its first error hides that error from rate().
        for method in methods:
            for code in _ALERT_CODES:
                metrics.requests.labels(method, code.name)

    def close_streams(self) -> None:
        """End response streams with UNAVAILABLE. They would otherwise delay the shutdown."""
        self._shutdown.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the method's handler, wrapped."""
        name = str(handler_call_details.method)
        if check_load := self._load_checks.get(name):
            try:
                check_load()
            except OverloadedError as error:
                return self._make_rejection(name.rpartition("/")[2], error)
        if name in self._handlers:
            return self._handlers[name]
        handler = await continuation(handler_call_details)
        if handler is None or not name.startswith((*_SERVICE_PREFIXES, _HEALTH_PREFIX)):
            return handler
        arity = f"{_ARITY[handler.request_streaming]}_{_ARITY[handler.response_streaming]}"
        # Parsed by the innermost behaviour: a rejected call is not parsed, and a malformed request is counted and explained.
        behaviour = _with_parser(
            getattr(handler, arity), handler.request_deserializer, streams=handler.request_streaming
        )
        if self._authorizer:
            behaviour = self._authorizer.wrap(name, behaviour, streams=handler.request_streaming)
        if name in AUDITED:  # Outside the authorization, so that rejected calls are audited too.
            behaviour = with_audit(name, behaviour)
        wrap = self._wrap_stream if handler.response_streaming else self._wrap_unary
        if name.startswith(_HEALTH_PREFIX):
            wrap = _wrap_health
        make = getattr(grpc, f"{arity}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(wrap(behaviour, name), None, handler.response_serializer)
        self._handlers[name] = wrapped
        return wrapped

    def _make_rejection(self, method: str, error: OverloadedError) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler that rejects a call. It takes a stream of requests, because grpcio does not wait for a stream."""
        self._metrics.requests.labels(method, status_of(error)[0].name).inc()
        self._metrics.request_seconds.labels(method).observe(0)

        async def reject(_requests: Any, context: Any) -> None:
            await _abort(error, method, context)

        return grpc.stream_unary_rpc_method_handler(reject)

    def _wrap_unary(self, behaviour: Any, procedure: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            async with _CallScope(self._metrics, procedure, context, self._tracer):
                return await behaviour(request, context)

        return call

    def _wrap_stream(self, behaviour: Any, procedure: str) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with (
                _CallScope(self._metrics, procedure, context, self._tracer),
                contextlib.aclosing(behaviour(request, context)) as answers,
                contextlib.aclosing(self._until_shutdown(answers)) as responses,
            ):
                async for response in responses:
                    yield response

        return call

    async def _until_shutdown(self, responses: AsyncIterator[Any]) -> AsyncGenerator[Any]:
        shutdown = asyncio.ensure_future(self._shutdown.wait())
        try:
            while True:
                next_response = asyncio.ensure_future(anext(responses, _END))
                try:
                    await asyncio.wait((next_response, shutdown), return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError:
                    await _cancel_and_wait(next_response)
                    raise
                if not next_response.done():
                    await _cancel_and_wait(next_response)
                if next_response.cancelled():
                    raise NotServingError("the server is shutting down; call another server")
                response = next_response.result()
                if response is _END:
                    return
                yield response
        finally:
            shutdown.cancel()


async def _cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it has ended, so that its work ends before its call does."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _with_parser(behaviour: Any, deserialize: Callable[[bytes], Any] | None, *, streams: bool) -> Any:
    """Let a behaviour parse its request, or each request of a stream. A malformed one raises InvalidRequestError."""

    def parse(request: bytes) -> Any:
        try:
            return deserialize(request) if deserialize else request
        except DecodeError as error:
            raise InvalidRequestError(
                Violation("request", "cannot be parsed; send the message of the service's .proto, with text in UTF-8")
            ) from error

    async def parse_all(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield parse(request)

    return lambda request, context: behaviour(parse_all(request) if streams else parse(request), context)


def _wrap_health(behaviour: Any, procedure: str) -> Any:
    """Convert errors, but count nothing, because probes call often. In grpcio's health servicer a watch is a coroutine too."""

    async def call(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 -- an unknown error becomes INTERNAL.
            await _abort(error, procedure, context)

    return call


class _CallScope:
    """The scope of one call, from its first byte to its status."""

    def __init__(self, metrics: Metrics, procedure: str, context: Any, tracer: Tracer | None) -> None:
        self._metrics = metrics
        self._procedure = procedure
        self._method = procedure.rpartition("/")[2]
        self._context = context
        self._tracer = tracer
        self._span: CallSpan | None = None
        self._started_at = time.monotonic()

    async def __aenter__(self) -> None:
        self._metrics.in_flight.labels(self._method).inc()
        REQUEST_ID.set(RequestId(self._context))
        if self._tracer:
            self._span = self._tracer.start_call(self._procedure, self._context.invocation_metadata() or ())
            CALL_SPAN.set(self._span)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._metrics.in_flight.labels(self._method).dec()
        self._metrics.request_seconds.labels(self._method).observe(time.monotonic() - self._started_at)
        code = self._code_of(error)
        self._metrics.requests.labels(self._method, code.name).inc()
        if self._tracer and self._span:
            self._tracer.end_call(self._span, code.name)
        # A call that the servicer aborted, or that was cancelled, already has its status.
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            await _abort(error, self._method, self._context)

    def _code_of(self, error: BaseException | None) -> grpc.StatusCode:
        if isinstance(
            error, (asyncio.CancelledError, GeneratorExit)
        ):  # The client left before the response was complete.
            remaining = self._context.time_remaining()
            expired = remaining is not None and remaining < CLOCK_SKEW_SECONDS
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
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented")
    code, reason = status_of(error)
    message, metadata = _shorten(str(error)), {}
    if (code, reason) == INTERNAL_ERROR:
        request_id = (REQUEST_ID.get() or RequestId(context)).value
        log.error("unexpected error", exc_info=error, extra={"method": method, "request": request_id})
        message, metadata = f"internal error; search the server's log for request {request_id}", {"request": request_id}
    violations = error.violations[:_MAX_VIOLATIONS] if isinstance(error, InvalidRequestError) else ()
    pushback: tuple[tuple[str, str], ...] = ()
    if isinstance(error, OverloadedError):
        details = _encode_overload(code.value[0], message, reason, error.retry_after)
        pushback = ((_RETRY_PUSHBACK, str(math.ceil(1000 * error.retry_after))),)
    else:
        field_violations = [
            status.FieldViolation(field=violation.field, description=_shorten(violation.description))
            for violation in violations
        ]
        details = status.encode_status(
            code.value[0], message, reason=reason, violations=field_violations, metadata=metadata
        )
    try:
        await context.abort(code, message, trailing_metadata=((status.METADATA_KEY, details), *pushback))
    except grpc.aio.InternalError as disconnected:  # The client has left; grpcio would log this as a server error.
        raise asyncio.CancelledError from disconnected


@lru_cache(64)
def _encode_overload(code: int, message: str, reason: str, retry_after: float) -> bytes:
    """Encode a rejection under load. It is cached, because it is repeated when the server is busiest."""
    return status.encode_status(code, message, reason=reason, retry_after=retry_after)


def _shorten(text: str) -> str:
    """Put a message on one line of bounded length."""
    line = " ".join(text[: 4 * _MAX_MESSAGE_LENGTH].split())
    return line if len(line) <= _MAX_MESSAGE_LENGTH else f"{line[:_MAX_MESSAGE_LENGTH]}..."

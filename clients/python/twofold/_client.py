"""The blocking and the asyncio client: one list of methods each, over the bodies in _methods."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

from twofold._channel import TLS, Endpoint
from twofold._context import ClientContext
from twofold._methods import adaptation, inference
from twofold._methods import checkpoints as store  # `checkpoints` is a method of both classes.
from twofold._operations import Flow, StreamFlow
from twofold._retry import Retry
from twofold._transports import AsyncTransport, BlockingTransport

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT_RETRY = Retry()


def _blocking(body: Callable[Concatenate[ClientContext, P], Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._transport.run(body(self._context, *args, **kwargs))

    return _with_signature(method, body)


def _blocking_iterator(
    body: Callable[Concatenate[ClientContext, P], StreamFlow[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._transport.iterate(body(self._context, *args, **kwargs))

    return _with_signature(method, body)


def _async(
    body: Callable[Concatenate[ClientContext, P], Flow[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transport.run(body(self._context, *args, **kwargs))

    return _with_signature(method, body)


def _async_iterator(
    body: Callable[Concatenate[ClientContext, P], StreamFlow[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._transport.iterate(body(self._context, *args, **kwargs))

    return _with_signature(method, body)


def _with_signature(method: F, body: Any) -> F:
    """Give *method* the name, the docstring and the parameters of *body*, with self instead of the context."""
    signature = inspect.signature(body)
    _, *parameters = signature.parameters.values()
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    functools.update_wrapper(method, body)
    vars(method)["__signature__"] = signature.replace(
        parameters=[self, *parameters], return_annotation=inspect.Signature.empty
    )
    return method


class _BaseClient:
    """The construction and representation of a client, and the warning if it is not closed."""

    _transport: BlockingTransport | AsyncTransport | None = None
    _open: ClassVar[type[BlockingTransport | AsyncTransport]]

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        *,
        tls: TLS | None = None,
        token: str | None = None,
        plaintext: bool = False,
        timeout: float = 30.0,
        retry: Retry = _DEFAULT_RETRY,
    ) -> None:
        self._endpoint = Endpoint(target=target, tls=tls, token=token, plaintext=plaintext)
        self._context = ClientContext(timeout=timeout, retry=retry)
        self._transport = self._open(self._endpoint)

    def __repr__(self) -> str:
        state = "closed" if self._transport is None or self._transport.closed else "open"
        return f"<{type(self).__name__} {self._endpoint.target} {state}>"

    def __del__(self) -> None:
        if self._transport is not None and not self._transport.closed:
            warnings.warn(f"unclosed {self!r}; use it in a with statement", ResourceWarning, source=self, stacklevel=2)


class Client(_BaseClient):
    """
    A client that blocks until the server answers.

    It is thread-safe; create one for the lifetime of the application. *timeout* is the default timeout of a call in seconds,
    including its retries. A *target* on another machine needs *tls* or plaintext=True.

    with Client("127.0.0.1:8500") as client:
        client.predict("Ada Lovelace was born in London.").entities
    """

    _transport: BlockingTransport
    _open = BlockingTransport

    predict = _blocking(inference.predict)
    predict_stream = _blocking_iterator(inference.predict_stream)
    embed = _blocking(inference.embed)
    model = _blocking(inference.model)
    health = _blocking(inference.health)

    adapt = _blocking(adaptation.adapt)
    upload_dataset = _blocking(adaptation.upload_dataset)
    job = _blocking(adaptation.job)
    jobs = _blocking_iterator(adaptation.jobs)
    watch = _blocking_iterator(adaptation.watch)
    wait = _blocking(adaptation.wait)
    cancel = _blocking(adaptation.cancel)
    report = _blocking(adaptation.report)

    checkpoint = _blocking(store.checkpoint)
    checkpoints = _blocking_iterator(store.checkpoints)
    alias_changes = _blocking_iterator(store.alias_changes)
    promote = _blocking(store.promote)
    roll_back = _blocking(store.roll_back)
    delete_checkpoint = _blocking(store.delete_checkpoint)

    def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_BaseClient):
    """
    A client for asyncio, with the methods of Client as coroutines and asynchronous iterators.

    async with AsyncClient("127.0.0.1:8500") as client:
        (await client.predict("Ada Lovelace was born in London.")).entities
    """

    _transport: AsyncTransport
    _open = AsyncTransport

    predict = _async(inference.predict)
    predict_stream = _async_iterator(inference.predict_stream)
    embed = _async(inference.embed)
    model = _async(inference.model)
    health = _async(inference.health)

    adapt = _async(adaptation.adapt)
    upload_dataset = _async(adaptation.upload_dataset)
    job = _async(adaptation.job)
    jobs = _async_iterator(adaptation.jobs)
    watch = _async_iterator(adaptation.watch)
    wait = _async(adaptation.wait)
    cancel = _async(adaptation.cancel)
    report = _async(adaptation.report)

    checkpoint = _async(store.checkpoint)
    checkpoints = _async_iterator(store.checkpoints)
    alias_changes = _async_iterator(store.alias_changes)
    promote = _async(store.promote)
    roll_back = _async(store.roll_back)
    delete_checkpoint = _async(store.delete_checkpoint)

    async def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

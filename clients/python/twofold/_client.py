"""The two faces of the client: one table of methods each, over the bodies in _methods."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from twofold._channel import TLS, Endpoint
from twofold._methods import adaptation, inference, reports
from twofold._methods import checkpoints as store  # `checkpoints` is a method of both classes.
from twofold._operations import Feed, Flow
from twofold._retry import Context, Retry
from twofold._transports import AsyncDriver, BlockingDriver

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])

_RETRY = Retry()


def _returns(method: Callable[Concatenate[Context, P], Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._driver.run(method(self._context, *args, **kwargs))

    return _dressed(call, method)


def _iterates(method: Callable[Concatenate[Context, P], Feed[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._driver.iterate(method(self._context, *args, **kwargs))

    return _dressed(call, method)


def _awaits(
    method: Callable[Concatenate[Context, P], Flow[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._driver.run(method(self._context, *args, **kwargs))

    return _dressed(call, method)


def _async_iterates(
    method: Callable[Concatenate[Context, P], Feed[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._driver.iterate(method(self._context, *args, **kwargs))

    return _dressed(call, method)


def _dressed(call: C, method: Any) -> C:
    """Give *call* the name, the docstring and the parameters of *method*, with self for its context."""
    signature = inspect.signature(method)
    _, *parameters = signature.parameters.values()
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    functools.update_wrapper(call, method)
    vars(call)["__signature__"] = signature.replace(
        parameters=[this, *parameters], return_annotation=inspect.Signature.empty
    )
    return call


class _Face:
    """What both faces say about themselves."""

    _endpoint: Endpoint
    _driver: BlockingDriver | AsyncDriver | None = None

    def __repr__(self) -> str:
        state = "closed" if self._driver is None or self._driver.closed else "open"
        return f"<{type(self).__name__} {self._endpoint.target} {state}>"

    def __del__(self) -> None:
        if self._driver is not None and not self._driver.closed:
            warnings.warn(f"unclosed {self!r}; use it in a with statement", ResourceWarning, source=self, stacklevel=2)


class Client(_Face):
    """
    Calls a Twofold server and blocks until it answers.

    An instance should live as long as your application does, and threads may share it. *timeout* is in seconds, for
    each call that names none, and covers its retries. A *target* on another machine needs *tls* or plaintext=True.

    with Client("127.0.0.1:8500") as client:
        client.predict("Ada Lovelace was born in London.").entities
    """

    _driver: BlockingDriver

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        *,
        tls: TLS | None = None,
        token: str | None = None,
        plaintext: bool = False,
        timeout: float = 30.0,
        retry: Retry = _RETRY,
    ) -> None:
        self._endpoint = Endpoint(target=target, tls=tls, token=token, plaintext=plaintext)
        self._context = Context(timeout=timeout, retry=retry)
        self._driver = BlockingDriver(self._endpoint)

    predict = _returns(inference.predict)
    predict_stream = _iterates(inference.predict_stream)
    embed = _returns(inference.embed)
    model = _returns(inference.model)
    health = _returns(inference.health)

    adapt = _returns(adaptation.adapt)
    upload_dataset = _returns(adaptation.upload_dataset)
    job = _returns(adaptation.job)
    jobs = _iterates(adaptation.jobs)
    watch = _iterates(adaptation.watch)
    wait = _returns(adaptation.wait)
    cancel = _returns(adaptation.cancel)
    report = _returns(reports.report)

    checkpoint = _returns(store.checkpoint)
    checkpoints = _iterates(store.checkpoints)
    alias_changes = _iterates(store.alias_changes)
    promote = _returns(store.promote)
    roll_back = _returns(store.roll_back)
    delete_checkpoint = _returns(store.delete_checkpoint)

    def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Face):
    """
    Calls a Twofold server from asyncio; the methods are those of Client, to be awaited or iterated with async for.

    async with AsyncClient("127.0.0.1:8500") as client:
        (await client.predict("Ada Lovelace was born in London.")).entities
    """

    _driver: AsyncDriver

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        *,
        tls: TLS | None = None,
        token: str | None = None,
        plaintext: bool = False,
        timeout: float = 30.0,
        retry: Retry = _RETRY,
    ) -> None:
        self._endpoint = Endpoint(target=target, tls=tls, token=token, plaintext=plaintext)
        self._context = Context(timeout=timeout, retry=retry)
        self._driver = AsyncDriver(self._endpoint)

    predict = _awaits(inference.predict)
    predict_stream = _async_iterates(inference.predict_stream)
    embed = _awaits(inference.embed)
    model = _awaits(inference.model)
    health = _awaits(inference.health)

    adapt = _awaits(adaptation.adapt)
    upload_dataset = _awaits(adaptation.upload_dataset)
    job = _awaits(adaptation.job)
    jobs = _async_iterates(adaptation.jobs)
    watch = _async_iterates(adaptation.watch)
    wait = _awaits(adaptation.wait)
    cancel = _awaits(adaptation.cancel)
    report = _awaits(reports.report)

    checkpoint = _awaits(store.checkpoint)
    checkpoints = _async_iterates(store.checkpoints)
    alias_changes = _async_iterates(store.alias_changes)
    promote = _awaits(store.promote)
    roll_back = _awaits(store.roll_back)
    delete_checkpoint = _awaits(store.delete_checkpoint)

    async def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

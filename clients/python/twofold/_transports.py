"""The two that do what the steps say: the only code that exists once for each colour."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio

from twofold._channel import Endpoint, callable_of, failure_of
from twofold._operations import Feed, Flow, Invoke, Item, Open, Receive, Sleep, Step

T = TypeVar("T")


class BlockingDriver:
    """Does what the steps say on a channel of its own and blocks meanwhile. Threads may share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = endpoint.open(grpc)
        self.closed = False

    def run(self, flow: Flow[T]) -> T:
        """Drive *flow* to its end and return its result; nobody sees its items."""
        outcome = None
        try:
            while True:
                step = flow.send(outcome)
                outcome = None if isinstance(step, Item) else self._do(step)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    def iterate(self, feed: Feed[T]) -> Iterator[T]:
        """Drive *feed* as far as its items are asked for."""
        outcome = None
        try:
            while True:
                try:
                    step = feed.send(outcome)
                except StopIteration:
                    return
                outcome = None
                if isinstance(step, Item):
                    yield step.value
                else:
                    outcome = self._do(step)
        finally:
            feed.close()

    def close(self) -> None:
        """Close the channel; calls that run are cancelled."""
        self.closed = True
        self._channel.close()

    def _do(self, step: Step) -> Any:
        if self.closed:
            raise RuntimeError("the client is closed")
        try:
            match step:
                case Invoke(rpc=rpc, request=request, timeout=timeout):
                    call = callable_of(self._channel, rpc)
                    sent = iter(request) if rpc.streams_requests else request
                    return call(sent, timeout=timeout, metadata=self._endpoint.metadata)
                case Open(rpc=rpc, request=request, timeout=timeout):
                    return callable_of(self._channel, rpc)(request, timeout=timeout, metadata=self._endpoint.metadata)
                case Receive(stream=stream):
                    return next(stream, None)  # type: ignore[call-overload]
                case Sleep(seconds=seconds):
                    time.sleep(seconds)
        except grpc.RpcError as error:
            return failure_of(error)


class AsyncDriver:
    """Does what the steps say on a channel of its own, in the event loop of its first call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._opened: Any = None
        self.closed = False

    @property
    def _channel(self) -> Any:
        # Only now, because a channel belongs to the loop that runs when it is opened.
        if self._opened is None:
            self._opened = self._endpoint.open(grpc.aio)
        return self._opened

    async def run(self, flow: Flow[T]) -> T:
        """Drive *flow* to its end and return its result; nobody sees its items."""
        outcome = None
        try:
            while True:
                try:
                    step = flow.send(outcome)
                except StopIteration as end:
                    result: T = end.value
                    return result
                outcome = None if isinstance(step, Item) else await self._do(step)
        finally:
            flow.close()

    async def iterate(self, feed: Feed[T]) -> AsyncIterator[T]:
        """Drive *feed* as far as its items are asked for."""
        outcome = None
        try:
            while True:
                try:
                    step = feed.send(outcome)
                except StopIteration:
                    return
                outcome = None
                if isinstance(step, Item):
                    yield step.value
                else:
                    outcome = await self._do(step)
        finally:
            feed.close()

    async def close(self) -> None:
        """Close the channel; calls that run are cancelled."""
        self.closed = True
        if self._opened is not None:
            await self._opened.close()

    async def _do(self, step: Step) -> Any:
        if self.closed:
            raise RuntimeError("the client is closed")
        try:
            match step:
                case Invoke(rpc=rpc, request=request, timeout=timeout):
                    call = callable_of(self._channel, rpc)
                    return await call(request, timeout=timeout, metadata=self._endpoint.metadata)
                case Open(rpc=rpc, request=request, timeout=timeout):
                    return callable_of(self._channel, rpc)(request, timeout=timeout, metadata=self._endpoint.metadata)
                case Receive(stream=stream):
                    response = await stream.read()  # type: ignore[attr-defined]
                    return None if response is grpc.aio.EOF else response
                case Sleep(seconds=seconds):
                    await asyncio.sleep(seconds)
        except grpc.RpcError as error:
            return failure_of(error)

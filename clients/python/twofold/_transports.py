"""Perform the operations of a method over gRPC, blocking or with asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio

from twofold._channel import Endpoint, failure_of, multicallable
from twofold._operations import Call, Emit, Flow, OpenStream, Operation, Receive, Sleep, StreamFlow

T = TypeVar("T")


class BlockingTransport:
    """Performs operations on its own channel and blocks until they are done. It is thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = endpoint.open_channel(grpc)
        self.closed = False

    def run(self, flow: Flow[T]) -> T:
        """Run *flow* to its end and return its result; emitted values are dropped."""
        outcome = None
        try:
            while True:
                operation = flow.send(outcome)
                outcome = None if isinstance(operation, Emit) else self._perform(operation)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    def iterate(self, flow: StreamFlow[T]) -> Iterator[T]:
        """Yield the emitted values of *flow*, which runs only as far as they are requested."""
        outcome = None
        try:
            while True:
                try:
                    operation = flow.send(outcome)
                except StopIteration:
                    return
                outcome = None
                if isinstance(operation, Emit):
                    yield operation.value
                else:
                    outcome = self._perform(operation)
        finally:
            flow.close()

    def close(self) -> None:
        """Close the channel and cancel the calls in progress."""
        self.closed = True
        self._channel.close()

    def _perform(self, operation: Operation) -> Any:
        if self.closed:
            raise RuntimeError("the client is closed")
        try:
            match operation:
                case Call(rpc=rpc, request=request, timeout=timeout):
                    call = multicallable(self._channel, rpc)
                    argument = iter(request) if rpc.streams_requests else request
                    return call(argument, timeout=timeout, metadata=self._endpoint.metadata)
                case OpenStream(rpc=rpc, request=request, timeout=timeout):
                    call = multicallable(self._channel, rpc)
                    return call(request, timeout=timeout, metadata=self._endpoint.metadata)
                case Receive(stream=stream):
                    return next(stream, None)  # type: ignore[call-overload]
                case Sleep(seconds=seconds):
                    time.sleep(seconds)
        except grpc.RpcError as error:
            return failure_of(error)


class AsyncTransport:
    """Performs operations on its own channel, in the event loop of its first call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._opened: Any = None
        self.closed = False

    @property
    def _channel(self) -> Any:
        # Opened on first use, because a channel belongs to the event loop that is running when it is opened.
        if self._opened is None:
            self._opened = self._endpoint.open_channel(grpc.aio)
        return self._opened

    async def run(self, flow: Flow[T]) -> T:
        """Run *flow* to its end and return its result; emitted values are dropped."""
        outcome = None
        try:
            while True:
                try:
                    operation = flow.send(outcome)
                except StopIteration as end:
                    result: T = end.value
                    return result
                outcome = None if isinstance(operation, Emit) else await self._perform(operation)
        finally:
            flow.close()

    async def iterate(self, flow: StreamFlow[T]) -> AsyncIterator[T]:
        """Yield the emitted values of *flow*, which runs only as far as they are requested."""
        outcome = None
        try:
            while True:
                try:
                    operation = flow.send(outcome)
                except StopIteration:
                    return
                outcome = None
                if isinstance(operation, Emit):
                    yield operation.value
                else:
                    outcome = await self._perform(operation)
        finally:
            flow.close()

    async def close(self) -> None:
        """Close the channel and cancel the calls in progress."""
        self.closed = True
        if self._opened is not None:
            await self._opened.close()

    async def _perform(self, operation: Operation) -> Any:
        if self.closed:
            raise RuntimeError("the client is closed")
        try:
            match operation:
                case Call(rpc=rpc, request=request, timeout=timeout):
                    call = multicallable(self._channel, rpc)
                    return await call(request, timeout=timeout, metadata=self._endpoint.metadata)
                case OpenStream(rpc=rpc, request=request, timeout=timeout):
                    call = multicallable(self._channel, rpc)
                    return call(request, timeout=timeout, metadata=self._endpoint.metadata)
                case Receive(stream=stream):
                    response = await stream.read()  # type: ignore[attr-defined]
                    return None if response is grpc.aio.EOF else response
                case Sleep(seconds=seconds):
                    await asyncio.sleep(seconds)
        except grpc.RpcError as error:
            return failure_of(error)

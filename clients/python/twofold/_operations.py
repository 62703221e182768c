"""
The I/O operations of a client method, as data.

A method of the client is a generator that yields operations and is sent their outcomes. It does no I/O itself, so one body
serves the blocking client, the asyncio client, and tests with a fake clock.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """A remote procedure: its path, how to serialise its messages, and which sides stream."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]
    streams_requests: bool = False
    streams_responses: bool = False


class Stream(Protocol):
    """An open stream of responses."""

    def cancel(self) -> object:
        """Cancel the stream; do nothing if it has ended."""


@dataclass(frozen=True, slots=True)
class Call:
    """Make a call. The outcome is its response or a Failure; *timeout* is in seconds."""

    rpc: Rpc
    request: Any
    timeout: float


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Start a call with a stream of responses. The outcome is a Stream; *timeout* is in seconds, None means no limit."""

    rpc: Rpc
    request: Any
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for the next response of a stream. The outcome is the response, a Failure, or None at the end."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for a number of seconds. The outcome is None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit(Generic[T]):
    """Yield *value* to the caller of an iterating method. The outcome is None."""

    value: T


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call: the number of its status code, its message, and its encoded google.rpc.Status if it has one."""

    code: int
    message: str
    details: bytes | None = None


Operation: TypeAlias = Call | OpenStream | Receive | Sleep
Flow: TypeAlias = Generator[Operation | Emit[Any], Any, T]
"""The body of a method that returns a T."""
StreamFlow: TypeAlias = Generator[Operation | Emit[T], Any, None]
"""The body of a method that iterates over values of type T."""

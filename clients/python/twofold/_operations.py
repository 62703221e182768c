"""
What a method asks of the network, as data.

A method of the client is a generator that yields these steps and is sent their outcomes. It does no I/O, so one body
serves the blocking client, the asyncio client and a test with a clock of its own.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One remote procedure: its *path*, how its messages travel, and which sides stream."""

    path: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    streams_requests: bool = False
    streams_responses: bool = False


class Stream(Protocol):
    """A server stream that is open."""

    def cancel(self) -> object:
        """Stop the stream; it does no harm to one that is over."""


@dataclass(frozen=True, slots=True)
class Invoke:
    """Make a call and answer with its response or a Failure; *timeout* is in seconds."""

    rpc: Rpc
    request: Any
    timeout: float


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a call whose responses stream, and answer with the Stream."""

    rpc: Rpc
    request: Any
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Receive:
    """Answer with the stream's next response, a Failure, or None at its end."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """Hand *value* to the caller who iterates."""

    value: T


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of a call that failed: the status number, the message and the encoded google.rpc.Status."""

    code: int
    message: str
    details: bytes | None = None


Step: TypeAlias = Invoke | Open | Receive | Sleep
Flow: TypeAlias = Generator[Step | Item[Any], Any, T]
"""A method that returns a T."""
Feed: TypeAlias = Generator[Step | Item[T], Any, None]
"""A method that hands out any number of T."""

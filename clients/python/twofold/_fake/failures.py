"""A failure that the fake server was told to answer with."""

from dataclasses import dataclass

import grpc

from twofold.errors import NotFoundError, TwofoldError
from twofold.status import encode_status


@dataclass(frozen=True, slots=True)
class Failing:
    """A failure that waits for its call."""

    code: grpc.StatusCode
    message: str
    details: bytes
    rpc: str = ""
    after_events: int = 0

    @classmethod
    def of(cls, error: TwofoldError) -> "Failing":
        """Return what *error* looks like on the wire."""
        return cls(error.code, error.message, encode_status(error.code.value[0], error.message, reason=error.reason))


def not_found(kind: str, name: str) -> NotFoundError:
    """Return the error that says that there is no *kind* of that name."""
    return NotFoundError(
        f"there is no {kind} {name!r}", code=grpc.StatusCode.NOT_FOUND, reason=f"{kind.upper()}_NOT_FOUND"
    )

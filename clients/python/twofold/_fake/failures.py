"""The failures of a fake server."""

from dataclasses import dataclass

import grpc

from twofold.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, TwofoldError
from twofold.status import encode_status


@dataclass(frozen=True, slots=True)
class ScriptedFailure:
    """A failure of the next call of *rpc*, or of any call; a watch fails after *after_events* events."""

    code: grpc.StatusCode
    message: str
    details: bytes
    rpc: str = ""
    after_events: int = 0

    @classmethod
    def from_error(cls, error: TwofoldError) -> "ScriptedFailure":
        """Return *error* as a server sends it."""
        return cls(error.code, error.message, encode_status(error.code.value[0], error.message, reason=error.reason))


def not_found(kind: str, name: str) -> NotFoundError:
    """Return the error for a *kind* of resource that does not exist."""
    return NotFoundError(
        f"there is no {kind} {name!r}", code=grpc.StatusCode.NOT_FOUND, reason=f"{kind.upper()}_NOT_FOUND"
    )


def failed_precondition(message: str, reason: str) -> FailedPreconditionError:
    """Return the error for a call in the wrong state."""
    return FailedPreconditionError(message, code=grpc.StatusCode.FAILED_PRECONDITION, reason=reason)


def invalid_argument(message: str) -> InvalidArgumentError:
    """Return the error for an invalid field."""
    return InvalidArgumentError(message, code=grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_FIELD")

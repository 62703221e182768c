"""The errors of the server, and the table that maps each to a gRPC status.

ServerError
├── InvalidRequestError      a field is invalid; names the field, the value and the fix
├── UnauthenticatedError     the call has no valid token
├── ScopeMissingError        the token lacks the required scope
├── OverloadedError          load was shed; says when to retry
│   └── RateLimitedError     the token's rate limit is used up
├── NotServingError          no checkpoint is live, or the server is draining
├── DeadlineExceededError    the deadline passed before the answer was ready
├── UnknownNameError         there is no such job, upload or model
├── ConflictError            a request_id was reused with a different request
├── FailedPreconditionError  the state of the object does not allow this
│   └── BaseChangedError     the current checkpoint changed since the candidate was judged
├── DatabaseError            the job database failed or does not answer
├── UnsupportedError         a method of another protocol is not supported; says what to call instead
└── SwapError                a checkpoint could not be made live; the old one keeps serving
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
from twofold_checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointFormatError,
    CheckpointInUseError,
    CheckpointNotFoundError,
    ExampleError,
)


class ServerError(Exception):
    """Base of all errors of this package."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invalid field of a request. *description* contains the value and the fix."""

    field: str
    description: str


class InvalidRequestError(ServerError):
    """A request is invalid."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations: Sequence[Violation] = violations


MAX_VIOLATIONS = 20
"""Maximum violations to report; a request of a few megabytes can have millions."""


def raise_if_invalid(violations: Iterable[Violation]) -> None:
    """Raise InvalidRequestError if there is a violation. Reads at most MAX_VIOLATIONS."""
    if first := tuple(itertools.islice(violations, MAX_VIOLATIONS)):
        raise InvalidRequestError(*first)


class UnauthenticatedError(ServerError):
    """The call has no valid token."""


class ScopeMissingError(ServerError):
    """The token lacks the required scope."""


class OverloadedError(ServerError):
    """Load was shed. *retry_after* is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitedError(OverloadedError):
    """The token's rate limit is used up."""


class NotServingError(ServerError):
    """No checkpoint is live, or the server is draining."""


class DeadlineExceededError(ServerError):
    """The deadline passed before the answer was ready."""


class UnknownNameError(ServerError):
    """There is no such job, upload or model."""


class ConflictError(ServerError):
    """A request_id was reused with a different request."""


class FailedPreconditionError(ServerError):
    """The state of the object does not allow this."""


class BaseChangedError(FailedPreconditionError):
    """The current checkpoint changed since the candidate was judged. *current* is its id, or None."""

    def __init__(self, current: str | None) -> None:
        super().__init__(f"the current checkpoint is now {current}")
        self.current = current


class DatabaseError(ServerError):
    """The job database failed or does not answer."""


class UnsupportedError(ServerError):
    """A method of another protocol is not supported."""


class SwapError(ServerError):
    """A checkpoint could not be made live; the old one keeps serving."""


# Reasons are part of the contract: clients match codes and reasons, never messages.
STATUS: dict[type[Exception], tuple[grpc.StatusCode, str]] = {
    InvalidRequestError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ExampleError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_EXAMPLE"),
    UnauthenticatedError: (grpc.StatusCode.UNAUTHENTICATED, "NO_VALID_TOKEN"),
    ScopeMissingError: (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
    RateLimitedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    OverloadedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    NotServingError: (grpc.StatusCode.UNAVAILABLE, "NOT_SERVING"),
    DeadlineExceededError: (grpc.StatusCode.DEADLINE_EXCEEDED, "EXPIRED"),
    UnknownNameError: (grpc.StatusCode.NOT_FOUND, "UNKNOWN_NAME"),
    CheckpointNotFoundError: (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND"),
    ConflictError: (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    FailedPreconditionError: (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE"),
    DatabaseError: (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    UnsupportedError: (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED"),
    SwapError: (grpc.StatusCode.FAILED_PRECONDITION, "SWAP_FAILED"),
    CheckpointInUseError: (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_IN_USE"),
    CheckpointCorruptError: (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_CORRUPT"),
    CheckpointFormatError: (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_FORMAT"),
}
INTERNAL_ERROR = (grpc.StatusCode.INTERNAL, "INTERNAL")
"""Status of every error that is not in the table. Its message contains no internals."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Return the code and the reason for an error."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return INTERNAL_ERROR

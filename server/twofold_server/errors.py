"""What can go wrong while serving, and the one table from an error to a gRPC status.

ServerError
├── InvalidRequestError    a field is wrong; names it, its value and what to write instead
├── UnauthenticatedError   the call has no token that is known here
├── ScopeMissingError      the caller's token does not allow this
├── OverloadedError        load was shed; says when to come back
│   └── RateLimitedError   the caller's token has had its requests for now
├── NotServingError        no checkpoint is live yet, or the server is draining
├── DeadlineExceededError           the caller's deadline passed before the answer was ready
├── UnknownNameError       there is no such job, upload or model
├── ConflictError          a request_id was used before with another request
├── FailedPreconditionError        the object is not in a state that allows this
│   └── BaseChangedError         something else became current than what a candidate was compared with
├── DatabaseError          the database of jobs failed, or does not answer
├── UnsupportedError       a procedure of a foreign protocol that is not served; says what to call instead
└── SwapError              a checkpoint could not be made live; the old one serves on
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
    """One field of a request that is wrong. *description* holds the value and what to write instead."""

    field: str
    description: str


class InvalidRequestError(ServerError):
    """A request cannot be answered as it is."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations: Sequence[Violation] = violations


MOST_VIOLATIONS = 20
"""So many faults of a request are looked for; one of a few megabytes can have millions."""


def refuse(violations: Iterable[Violation]) -> None:
    """Raise InvalidRequestError if there is a violation. Reads at most as many violations as the error can hold."""
    if first := tuple(itertools.islice(violations, MOST_VIOLATIONS)):
        raise InvalidRequestError(*first)


class UnauthenticatedError(ServerError):
    """The call has no token that is known here."""


class ScopeMissingError(ServerError):
    """The caller's token does not allow this."""


class OverloadedError(ServerError):
    """Load was shed. *retry_after* is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitedError(OverloadedError):
    """The caller's token has had its requests for now."""


class NotServingError(ServerError):
    """No checkpoint is live yet, or the server is draining."""


class DeadlineExceededError(ServerError):
    """The caller's deadline passed before the answer was ready."""


class UnknownNameError(ServerError):
    """There is no such job, upload or model."""


class ConflictError(ServerError):
    """A request_id was used before with another request."""


class FailedPreconditionError(ServerError):
    """The object is not in a state that allows this."""


class BaseChangedError(FailedPreconditionError):
    """Something else became current than what a candidate was compared with: *current*, or nothing."""

    def __init__(self, current: str | None) -> None:
        super().__init__(f"{current} is current by now")
        self.current = current


class DatabaseError(ServerError):
    """The database of jobs failed, or does not answer."""


class UnsupportedError(ServerError):
    """A procedure of a foreign protocol that is not served."""


class SwapError(ServerError):
    """A checkpoint could not be made live; the old one serves on."""


# Reasons are part of the contract: callers match codes and reasons, never messages.
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
BUG = (grpc.StatusCode.INTERNAL, "BUG")
"""Status of every error that is not in the table. Its message tells the caller nothing of our insides."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Return the code and the reason for an error."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return BUG

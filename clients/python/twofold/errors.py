"""
The errors of the client, by what the caller can do about them.

TwofoldError                  any failed call
├── InvalidArgumentError      fix the request: the violations name the invalid fields
├── NotFoundError             the job, checkpoint or upload does not exist
├── AlreadyExistsError        the request id was used for a different request
├── FailedPreconditionError   the server is in the wrong state for this call
├── AccessDeniedError         the token is missing, invalid or lacks a scope
├── OverloadedError           send less, or retry later: see retry_after
├── UnavailableError          no server answers, or it is not ready
└── DeadlineExceededError     the timeout has passed
"""

from collections.abc import Mapping
from types import MappingProxyType

import grpc

from twofold._operations import Failure
from twofold.status import FieldViolation, Status, decode_status

__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "InvalidArgumentError",
    "NotFoundError",
    "OverloadedError",
    "TwofoldError",
    "UnavailableError",
]

_CODES: Mapping[int, grpc.StatusCode] = MappingProxyType({code.value[0]: code for code in grpc.StatusCode})


class TwofoldError(Exception):
    """
    A failed call.

    *code* and *reason* are stable and for programs; *message* is for people and may change. *retry_after* is in seconds, and
    None if the server sent no delay.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.violations = violations
        self.retry_after = retry_after

    def __str__(self) -> str:
        violations = [f"{v.field}: {v.description}" for v in self.violations if v.description not in self.message]
        return "; ".join([self.message, *violations])


class InvalidArgumentError(TwofoldError):
    """The request is invalid."""


class NotFoundError(TwofoldError):
    """The job, checkpoint or upload does not exist."""


class AlreadyExistsError(TwofoldError):
    """The request id was used for a different request."""


class FailedPreconditionError(TwofoldError):
    """The server is in the wrong state for this call."""


class AccessDeniedError(TwofoldError):
    """The token is missing, invalid or lacks a scope."""


class OverloadedError(TwofoldError):
    """The server rejected the call because it is overloaded."""


class UnavailableError(TwofoldError):
    """No server answers at the target, or it is not ready."""


class DeadlineExceededError(TwofoldError):
    """The call took longer than its timeout."""


_BY_CODE: Mapping[grpc.StatusCode, type[TwofoldError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
        grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
        grpc.StatusCode.NOT_FOUND: NotFoundError,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
        grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
        grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
        grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
        grpc.StatusCode.UNAVAILABLE: UnavailableError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    }
)


def status_of(failure: Failure) -> Status:
    """Return the status of *failure*: from its details, or from its code and message if it has no valid details."""
    if failure.details is not None:
        try:
            return decode_status(failure.details)
        except ValueError:
            pass  # A proxy may have truncated them. The code and the message remain.
    return Status(code=failure.code, message=failure.message)


def error_of(failure: Failure) -> TwofoldError:
    """Return the exception for *failure*."""
    code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    status = status_of(failure)
    return _BY_CODE.get(code, TwofoldError)(
        failure.message or status.message or code.value[1],
        code=code,
        reason=status.reason,
        violations=status.violations,
        retry_after=status.retry_after,
    )

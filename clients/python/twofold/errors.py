"""
What can go wrong with a call, by what the caller can do about it.

TwofoldError                  any call that failed
├── InvalidArgumentError      change the request: the violations name its fields
├── NotFoundError             there is no job, checkpoint or upload of that id
├── AlreadyExistsError        the request id was used for another request
├── FailedPreconditionError   the server is in the wrong state for this
├── AccessDeniedError         the token is missing, wrong or too weak
├── OverloadedError           send less, or later: see retry_after
├── UnavailableError          no server answers, or it is not ready
└── DeadlineExceededError     it took longer than the timeout
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

CODES: Mapping[int, grpc.StatusCode] = MappingProxyType({code.value[0]: code for code in grpc.StatusCode})


class TwofoldError(Exception):
    """
    A call that failed.

    *code* and *reason* are stable and meant for programs; *message* is meant for people and may change. *retry_after*
    is in seconds and None if the server named no delay.
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
        unsaid = [f"{v.field}: {v.description}" for v in self.violations if v.description not in self.message]
        return "; ".join([self.message, *unsaid])


class InvalidArgumentError(TwofoldError):
    """The request is wrong, whatever the server's state."""


class NotFoundError(TwofoldError):
    """The request names something that does not exist."""


class AlreadyExistsError(TwofoldError):
    """The request id was used with another request."""


class FailedPreconditionError(TwofoldError):
    """The server is in a state in which it cannot do this."""


class AccessDeniedError(TwofoldError):
    """The server does not let this caller do this."""


class OverloadedError(TwofoldError):
    """The server shed this call to keep up with the others."""


class UnavailableError(TwofoldError):
    """No server answers at the target, or it is not ready."""


class DeadlineExceededError(TwofoldError):
    """The answer did not come within the timeout."""


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
    """Return the details of *failure*, or what its code and message say if it has none that can be read."""
    if failure.details is not None:
        try:
            return decode_status(failure.details)
        except ValueError:
            pass  # A proxy may have cut them; the code and the message still tell what happened.
    return Status(code=failure.code, message=failure.message)


def error_of(failure: Failure) -> TwofoldError:
    """Return the exception that tells the caller about *failure*."""
    code = CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    status = status_of(failure)
    return _BY_CODE.get(code, TwofoldError)(
        failure.message or status.message or code.value[1],
        code=code,
        reason=status.reason,
        violations=status.violations,
        retry_after=status.retry_after,
    )

import pickle

import grpc
import pytest
from twofold import errors
from twofold._operations import Failure
from twofold.errors import FieldViolation, InvalidArgumentError, TwofoldError, error_of
from twofold.status import encode_status

CASES = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPreconditionError,
    grpc.StatusCode.UNAUTHENTICATED: errors.AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.AccessDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
}
BAD = FieldViolation(field="texts[3]", description="is 12000 characters long; send at most 10000")


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_class_of_a_code(code):
    """Every status code has its exception class; codes without one raise TwofoldError."""
    error = error_of(Failure(code.value[0], "why"))

    assert type(error) is CASES.get(code, TwofoldError)
    assert (error.code, error.message) == (code, "why")


def test_details():
    """The reason, the violations and the delay come from the details."""
    details = encode_status(3, "bad", reason="INVALID_FIELD", violations=[BAD], retry_after=1.5)

    error = error_of(Failure(3, "bad", details))

    assert (error.reason, error.violations, error.retry_after) == ("INVALID_FIELD", (BAD,), 1.5)
    assert str(error) == "bad; texts[3]: is 12000 characters long; send at most 10000"


def test_no_duplicate_violations():
    """A violation that the message already contains is not repeated."""
    message = f"{BAD.field} {BAD.description}"

    assert str(InvalidArgumentError(message, violations=(BAD,))) == message


def test_pickle():
    """An error can be pickled, to be raised in another process."""
    error = error_of(Failure(3, "bad", encode_status(3, "bad", reason="R", violations=[BAD])))

    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), vars(copy)) == (type(error), vars(error))


def test_documented_tree():
    """The docstring of the module lists every class."""
    classes = [name for name in errors.__all__ if name.endswith("Error")]

    assert all(name in (errors.__doc__ or "") for name in classes)

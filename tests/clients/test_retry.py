import grpc
import pytest
from twofold import DeadlineExceededError, OverloadedError, Retry, TwofoldError, UnavailableError
from twofold._context import ClientContext
from twofold._operations import Call, Failure, Sleep
from twofold._rpcs import GET_MODEL
from twofold.status import encode_status


def make_failure(code, retry_after=None):
    """Return a failure with details."""
    number = code.value[0]
    return Failure(number, "no", encode_status(number, "no", reason="R", retry_after=retry_after))


UNAVAILABLE = make_failure(grpc.StatusCode.UNAVAILABLE)
SHED = make_failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=2.0)
SHED_FOR_A_MINUTE = make_failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=60.0)
SHED_WITHOUT_DELAY = make_failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
INVALID = make_failure(grpc.StatusCode.INVALID_ARGUMENT)
LATE = Failure(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "Deadline Exceeded")


def run_call(outcomes, *, timeout=30.0, duration=0.0, retry=None):
    """Send *outcomes* to a call, each after *duration* seconds; return its operations and its result or error class."""
    now = [100.0]
    context = ClientContext(retry=retry or Retry(), clock=lambda: now[0], uniform=lambda: 1.0)
    call = context.call(GET_MODEL, "request", timeout)
    operations, outcome, remaining = [], None, list(outcomes)
    try:
        while True:
            operation = call.send(outcome)
            outcome = None
            if isinstance(operation, Sleep):
                operations.append(("sleep", round(operation.seconds, 3)))
                now[0] += operation.seconds
            else:
                assert isinstance(operation, Call)
                operations.append(("call", round(operation.timeout, 3)))
                now[0] += duration
                outcome = remaining.pop(0)
    except StopIteration as end:
        return operations, end.value
    except TwofoldError as error:
        return operations, type(error)


@pytest.mark.parametrize(
    ("failure", "attempt", "expected"),
    [
        (UNAVAILABLE, 0, 0.1),
        (UNAVAILABLE, 1, 0.2),
        (UNAVAILABLE, 3, 0.8),
        (UNAVAILABLE, 4, None),
        (SHED, 0, 2.1),
        (SHED_FOR_A_MINUTE, 0, None),
        (SHED_WITHOUT_DELAY, 0, None),
        (INVALID, 0, None),
        (LATE, 0, None),
        (Failure(14, "a proxy's message", b"\xff"), 0, 0.1),
    ],
)
def test_delay(failure, attempt, expected):
    """Only an unavailable server and shed load with a delay are retried, with doubling delays, five attempts in total."""
    assert Retry().delay(failure, attempt, lambda: 1.0) == expected


def test_full_jitter():
    """A delay is between zero and its maximum, and never longer than max_backoff."""
    assert Retry().delay(UNAVAILABLE, 2, lambda: 0.0) == 0.0
    assert Retry(attempts=99, max_backoff=3.0).delay(UNAVAILABLE, 60, lambda: 1.0) == 3.0


def test_success_after_failures():
    """The response after two failures is returned, and the remaining timeout falls from attempt to attempt."""
    operations, response = run_call([UNAVAILABLE, UNAVAILABLE, "response"], duration=1.0)

    assert operations == [("call", 30.0), ("sleep", 0.1), ("call", 28.9), ("sleep", 0.2), ("call", 27.7)]
    assert response == "response"


def test_long_retry_after():
    """A server that asks for a minute is not waited for, unless max_retry_after allows it."""
    assert run_call([SHED_FOR_A_MINUTE], timeout=300.0) == ([("call", 300.0)], OverloadedError)
    operations, response = run_call([SHED_FOR_A_MINUTE, "response"], timeout=300.0, retry=Retry(max_retry_after=60.0))
    assert (operations[1], response) == (("sleep", 60.1), "response")


def test_last_attempt():
    """After the last attempt the failure is raised."""
    operations, error = run_call([UNAVAILABLE] * 5)

    assert len([name for name, _ in operations if name == "call"]) == 5
    assert error is UnavailableError


def test_delay_beyond_the_deadline():
    """If the delay exceeds the deadline, the failure is raised at once."""
    assert run_call([SHED], timeout=1.0) == ([("call", 1.0)], OverloadedError)


def test_deadline():
    """A call that exceeds its deadline is not retried."""
    assert run_call([LATE], timeout=1.0, duration=1.0) == ([("call", 1.0)], DeadlineExceededError)


def test_no_retry():
    """With one attempt there is one call."""
    assert run_call([UNAVAILABLE], retry=Retry(attempts=1)) == ([("call", 30.0)], UnavailableError)

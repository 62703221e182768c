import grpc
import pytest
from twofold import DeadlineExceededError, OverloadedError, Retry, TwofoldError, UnavailableError
from twofold._operations import Failure, Invoke, Sleep
from twofold._retry import Context
from twofold._rpcs import GET_MODEL
from twofold.status import encode_status


def _failure(code, retry_after=None):
    number = code.value[0]
    return Failure(number, "no", encode_status(number, "no", reason="R", retry_after=retry_after))


DOWN = _failure(grpc.StatusCode.UNAVAILABLE)
SHED = _failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=2.0)
BROKEN = _failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=60.0)
FULL = _failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
WRONG = _failure(grpc.StatusCode.INVALID_ARGUMENT)
LATE = Failure(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "Deadline Exceeded")


def _drive(outcomes, *, timeout=30.0, took=0.0, retry=None):
    """Play *outcomes* to a call, each after *took* seconds, and return what it asked for and how it ended."""
    now = [100.0]
    context = Context(retry=retry or Retry(), clock=lambda: now[0], draw=lambda: 1.0)
    call = context.call(GET_MODEL, "request", timeout)
    asked, outcome, rest = [], None, list(outcomes)
    try:
        while True:
            step = call.send(outcome)
            outcome = None
            if isinstance(step, Sleep):
                asked.append(("sleep", round(step.seconds, 3)))
                now[0] += step.seconds
            else:
                assert isinstance(step, Invoke)
                asked.append(("call", round(step.timeout, 3)))
                now[0] += took
                outcome = rest.pop(0)
    except StopIteration as end:
        return asked, end.value
    except TwofoldError as error:
        return asked, type(error)


@pytest.mark.parametrize(
    ("failed", "attempt", "expected"),
    [
        (DOWN, 0, 0.1),
        (DOWN, 1, 0.2),
        (DOWN, 3, 0.8),
        (DOWN, 4, None),
        (SHED, 0, 2.1),
        (BROKEN, 0, None),
        (FULL, 0, None),
        (WRONG, 0, None),
        (LATE, 0, None),
        (Failure(14, "a proxy said so", b"\xff"), 0, 0.1),
    ],
)
def test_delay(failed, attempt, expected):
    """Only an absent server and shed load with a delay are retried, with doubling waits, five attempts in all."""
    assert Retry().delay(failed, attempt, lambda: 1.0) == expected


def test_jitter_is_full():
    """A wait may be anything from nothing to its most, and never longer than the cap."""
    assert Retry().delay(DOWN, 2, lambda: 0.0) == 0.0
    assert Retry(attempts=99, most=3.0).delay(DOWN, 60, lambda: 1.0) == 3.0


def test_succeeds_after_failures():
    """The answer after two failures is the answer, and the time left falls from attempt to attempt."""
    asked, answer = _drive([DOWN, DOWN, "answer"], took=1.0)

    assert asked == [("call", 30.0), ("sleep", 0.1), ("call", 28.9), ("sleep", 0.2), ("call", 27.7)]
    assert answer == "answer"


def test_a_long_wait_is_the_callers_to_decide():
    """A server that asks for a minute is not waited for, though there is time, unless the caller is so patient."""
    assert _drive([BROKEN], timeout=300.0) == ([("call", 300.0)], OverloadedError)
    asked, answer = _drive([BROKEN, "answer"], timeout=300.0, retry=Retry(patience=60.0))
    assert (asked[1], answer) == (("sleep", 60.1), "answer")


def test_gives_up():
    """After the last attempt the failure itself is raised."""
    asked, answer = _drive([DOWN] * 5)

    assert len([step for step, _ in asked if step == "call"]) == 5
    assert answer is UnavailableError


def test_does_not_outlast_the_deadline():
    """A wait that would use up the time is not begun, and the failure is told instead of the deadline."""
    assert _drive([SHED], timeout=1.0) == ([("call", 1.0)], OverloadedError)


def test_deadline():
    """A call that runs out of time is not made again."""
    assert _drive([LATE], timeout=1.0, took=1.0) == ([("call", 1.0)], DeadlineExceededError)


def test_no_retry():
    """One attempt is one call."""
    assert _drive([DOWN], retry=Retry(attempts=1)) == ([("call", 30.0)], UnavailableError)

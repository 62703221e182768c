"""When a failed call is made again, and how long after."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc

from twofold._operations import Failure, Flow, Invoke, Rpc, Sleep
from twofold.errors import error_of, status_of

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
_RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """
    Exponential back-off with full jitter: the n-th wait is drawn from zero to min(most, first x 2^n) seconds.

    Retry(attempts=1)         # never retry
    Retry(attempts=8)         # be patient with a server that restarts
    """

    attempts: int = 5
    first: float = 0.1
    most: float = 5.0
    patience: float = 10.0
    """The longest wait, in seconds, that a server may ask for. Beyond it the call fails at once, and its error says when."""

    def delay(self, failure: Failure, attempt: int, draw: Callable[[], float]) -> float | None:
        """
        Return how many seconds to wait after attempt number *attempt*, from 0; None means to give up.

        Only failures that leave nothing behind are retried: the server was not there, or it shed the call and said when
        to come back. *draw* returns a number from 0 to 1.
        """
        after = status_of(failure).retry_after
        if attempt + 1 >= self.attempts or (after or 0.0) > self.patience:
            return None
        if failure.code == _UNAVAILABLE or (failure.code == _RESOURCE_EXHAUSTED and after is not None):
            return (after or 0.0) + draw() * min(self.most, self.first * 2.0**attempt)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every method knows: the default timeout in seconds, the retry policy, the clock and the dice."""

    timeout: float = 30.0
    retry: Retry = field(default_factory=Retry)
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random

    def call(self, rpc: Rpc, request: Any, timeout: float | None = None, *, retry: Retry | None = None) -> Flow[Any]:
        """
        Call *rpc* until it succeeds, the policy gives up or the time is used up.

        *timeout* covers all attempts and the waits between them. Raise TwofoldError.
        """
        policy = retry or self.retry
        deadline = self.clock() + (self.timeout if timeout is None else timeout)
        for attempt in count():
            outcome = yield Invoke(rpc, request, max(0.0, deadline - self.clock()))
            if not isinstance(outcome, Failure):
                return outcome
            wait = policy.delay(outcome, attempt, self.draw)
            # The failure tells more than "deadline exceeded" would.
            if wait is None or self.clock() + wait >= deadline:
                raise error_of(outcome)
            yield Sleep(wait)
        raise AssertionError("count() never ends. This is a bug.")

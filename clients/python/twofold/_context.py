"""The settings of a client that all its methods share."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from twofold._operations import Call, Failure, Flow, Rpc, Sleep
from twofold._retry import Retry
from twofold.errors import error_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContext:
    """The default timeout in seconds, the retry policy, the clock, and the source of random numbers from 0 to 1."""

    timeout: float = 30.0
    retry: Retry = field(default_factory=Retry)
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[], float] = random.random

    def call(self, rpc: Rpc, request: Any, timeout: float | None = None, *, retry: Retry | None = None) -> Flow[Any]:
        """
        Call *rpc* until it succeeds, the retry policy gives up or the timeout has passed.

        *timeout* covers all attempts and the delays between them. Raise TwofoldError.
        """
        policy = retry or self.retry
        deadline = self.clock() + (self.timeout if timeout is None else timeout)
        for attempt in count():
            outcome = yield Call(rpc, request, max(0.0, deadline - self.clock()))
            if not isinstance(outcome, Failure):
                return outcome
            delay = policy.delay(outcome, attempt, self.uniform)
            # If the delay exceeds the deadline, raise the failure: it says more than "deadline exceeded".
            if delay is None or self.clock() + delay >= deadline:
                raise error_of(outcome)
            yield Sleep(delay)
        raise AssertionError("count() never ends. This is a bug.")

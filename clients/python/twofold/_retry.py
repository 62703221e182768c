"""When to retry a failed call, and after which delay."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from twofold._operations import Failure
from twofold.errors import status_of

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
_RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """
    A retry policy: exponential backoff with full jitter.

    The delay before retry n, from 0, is random between 0 and min(max_backoff, initial_backoff * 2**n) seconds. A delay that
    the server asks for is added to it; a call whose server asks for more than *max_retry_after* seconds is not retried.

    Retry(attempts=1)         # never retry
    Retry(attempts=8)         # wait for a server that restarts
    """

    attempts: int = 5
    initial_backoff: float = 0.1
    max_backoff: float = 5.0
    max_retry_after: float = 10.0

    def delay(self, failure: Failure, attempt: int, uniform: Callable[[], float]) -> float | None:
        """
        Return the seconds to wait after the failed *attempt*, counted from 0, or None to give up.

        Only failures without side effects are retried: the server was unavailable, or it shed the call and sent a delay.
        *uniform* returns a random number from 0 to 1.
        """
        retry_after = status_of(failure).retry_after
        if attempt + 1 >= self.attempts or (retry_after or 0.0) > self.max_retry_after:
            return None
        if failure.code == _UNAVAILABLE or (failure.code == _RESOURCE_EXHAUSTED and retry_after is not None):
            return (retry_after or 0.0) + uniform() * min(self.max_backoff, self.initial_backoff * 2.0**attempt)
        return None

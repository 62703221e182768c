"""Rate limits, with a fake clock."""

from __future__ import annotations

import itertools

import pytest
from twofold_server.security.rate_limit import RateLimit


class Clock:
    """A fake clock."""

    now = 1000.0

    def __call__(self):
        """Return the time."""
        return self.now


@pytest.mark.parametrize(("rate", "at_once"), [(0.5, 1), (1, 1), (3, 3), (50, 50)])
def test_one_second_of_requests_may_come_at_once(rate, at_once):
    """After a pause, the requests of one second, but at least one, are admitted at once; the next gets its delay."""
    clock = Clock()
    limit = RateLimit(rate, clock)

    taken = sum(1 for _ in itertools.takewhile(lambda _: limit.take() == 0, range(1000)))

    assert taken == at_once
    assert limit.take() == pytest.approx(1 / rate, abs=1e-5)


@pytest.mark.parametrize("rate", [0.5, 7, 100])
def test_the_rate_holds_in_the_long_run(rate):
    """In the long run, the admitted requests match the rate."""
    clock = Clock()
    limit = RateLimit(rate, clock)
    taken = 0
    for _ in range(20_000):
        taken += limit.take() == 0
        clock.now += 0.005

    assert taken == pytest.approx(100 * rate + max(1, rate), abs=2)


def test_a_request_after_the_retry_delay_is_admitted():
    """After the delay of a rejection, a request is admitted."""
    clock = Clock()
    limit = RateLimit(2, clock)
    while not (wait := limit.take()):
        pass

    clock.now += wait + 1e-9

    assert limit.take() == 0


def test_places_that_are_taken_follow_each_other():
    """Reserved requests follow each other at the rate."""
    limit = RateLimit(4, Clock())

    assert [limit.reserve() for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75], abs=1e-5)


async def test_a_stream_is_paced_and_loses_nothing():
    """All requests of a stream are passed on in order; the first one without a delay."""
    limit = RateLimit(1000)
    taken = []
    limit.reserve = lambda: taken.append(None) or 0.0

    async def requests():
        for number in range(5):
            yield number

    assert [item async for item in limit.throttle(requests())] == [0, 1, 2, 3, 4]
    assert len(taken) == 4

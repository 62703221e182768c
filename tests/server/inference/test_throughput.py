"""The estimate of how long queued tokens will take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twofold_server.inference.throughput import ThroughputEstimator


@pytest.mark.parametrize(
    ("passes", "running", "tokens", "seconds"),
    [
        (1, (), 0, 0.0),
        (1, (), 500, 0.5),
        (1, (84,), 0, 0.1),  # A pass costs as much as 16 tokens beside its own.
        (1, (84,), 500, 0.6),
        (2, (84, 184), 500, 0.4),  # Two passes share what waits, and what runs.
    ],
)
def test_the_estimate_counts_running_and_queued_tokens(passes, running, tokens, seconds):
    """At a thousand tokens per second the estimate counts the tokens in passes and in the queue."""
    pace = ThroughputEstimator(passes, tokens_per_second=1000.0)
    for thread, size in enumerate(running):
        pace.begin(thread, size, 16)

    assert pace.estimate_seconds(tokens) == pytest.approx(seconds)


def test_a_pass_that_is_over_takes_no_more_time():
    """A finished pass no longer counts, even if it failed; finishing twice is harmless."""
    pace = ThroughputEstimator(1, tokens_per_second=1000.0)
    pace.begin(0, 84, 16)
    pace.end(0)
    pace.end(0)

    assert pace.estimate_seconds(0) == 0


@given(st.lists(st.integers(1, 2048), min_size=60, max_size=60))
def test_the_speed_is_learned_for_any_pass_size(sizes):
    """After sixty passes on a machine fifty times slower than the initial guess, the estimate is within one per cent."""
    pace = ThroughputEstimator(1)
    for tokens in sizes:
        pace.update(tokens, 16, (tokens + 16) / 200.0)

    assert pace.tokens_per_second == pytest.approx(200.0, rel=0.01)


def test_a_pass_of_zero_seconds_gives_a_finite_speed():
    """A pass of zero seconds gives a finite speed."""
    pace = ThroughputEstimator(1)
    pace.update(100, 16, 0.0)

    assert 0 < pace.estimate_seconds(1000) < 1

"""The gate's promise, simulated: a regression beyond the margin is not passed more often than it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from twofold_trainer.metrics import SpanCounts
from twofold_trainer.noninferiority import ALPHA, paired_f1, tango

REPETITIONS = 2000
CHANCE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / REPETITIONS)
"""Three standard errors of a share of ALPHA in so many repetitions."""


@pytest.mark.parametrize("examples", [50, 300, 1000, 2000])
@pytest.mark.parametrize(("lost", "gained"), [(0.0101, 0.0), (0.02, 0.0099), (0.06, 0.0499)])
def test_a_planted_regression_of_labels_is_not_passed(examples: int, lost: float, gained: float) -> None:
    """The true accuracy falls by 1.01 points; at a margin of 1 the gate passes it in at most 5 % of the cases."""
    generator = np.random.default_rng([examples, round(1e4 * lost)])
    drawn = generator.multinomial(examples, [gained, lost, 1 - gained - lost], size=REPETITIONS)
    kinds, often = np.unique(drawn[:, :2], axis=0, return_counts=True)
    passed = sum(
        int(times) for (won, gone), times in zip(kinds, often, strict=True) if tango(won, gone, examples).lower > -0.01
    )

    assert passed / REPETITIONS <= ALPHA + CHANCE


def sentences(generator: np.random.Generator, count: int, lost: float, gained: float) -> tuple[list, list]:
    """Draw sentences of no to four spans, each found with probability .95; then found ones are lost and others gained."""
    spans = generator.integers(0, 5, count)
    found = generator.binomial(spans, 0.95)
    after = found - generator.binomial(found, lost) + generator.binomial(spans - found, gained)
    return (
        [SpanCounts(int(right), int(one), int(one)) for right, one in zip(found, spans, strict=True)],
        [SpanCounts(int(right), int(one), int(one)) for right, one in zip(after, spans, strict=True)],
    )


@pytest.mark.parametrize("count", [50, 300, 1000])
@pytest.mark.parametrize(("lost", "gained"), [(0.0107, 0.0), (0.032, 0.4)])
def test_a_planted_regression_of_spans_is_not_passed(count: int, lost: float, gained: float) -> None:
    """The true F1 falls by about a point and the margin is 1 % smaller; the gate passes it in at most 5 % of the cases."""
    generator = np.random.default_rng([count, round(1e4 * lost)])
    fall = 0.95 * lost - 0.05 * gained
    passed = 0
    for number in range(REPETITIONS):
        before, after = sentences(generator, count, lost, gained)
        passed += paired_f1(before, after, seed=number, resamples=400).lower > -0.99 * fall

    assert passed / REPETITIONS <= ALPHA + CHANCE


def test_no_change_is_passed_when_there_is_enough_to_see_it() -> None:
    """The promise is not kept by refusing all: without a true change, 2,000 examples pass nearly always."""
    generator = np.random.default_rng(0)
    by_label = [
        tango(int(won), int(gone), 2000).lower > -0.01
        for won, gone, _ in generator.multinomial(2000, [0.005, 0.005, 0.99], size=REPETITIONS)
    ]
    by_span = []
    for number in range(200):
        before, after = sentences(generator, 2000, 0.003, 0.057)
        by_span.append(paired_f1(before, after, seed=number, resamples=400).lower > -0.01)

    assert np.mean(by_label) > 0.95
    assert np.mean(by_span) > 0.95

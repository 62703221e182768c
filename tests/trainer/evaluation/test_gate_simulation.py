"""A simulation of the gate: it passes a regression beyond the margin no more often than it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
from twofold_trainer.scoring.noninferiority import ALPHA, paired_accuracy, paired_f1
from twofold_trainer.scoring.scores import SpanCounts

pytestmark = pytest.mark.slow

REPETITIONS = 2000
CHANCE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / REPETITIONS)
"""Three standard errors of a share of ALPHA in so many repetitions."""
RESAMPLES = 400
FOUND = 0.95
DENSE = (0.2, 0.2, 0.2, 0.2, 0.2)
"""Shares of the sentences with none, one, two and more spans."""
SPARSE = (0.6, 0.25, 0.1, 0.05)
KINDS = [[SpanCounts(right, spans, spans) for right in range(spans + 1)] for spans in range(5)]


@pytest.mark.parametrize("examples", [50, 178, 270, 300, 540, 1000, 2000])
@pytest.mark.parametrize(("lost", "gained"), [(0.0101, 0.0), (0.0111, 0.001), (0.02, 0.0099), (0.06, 0.0499)])
def test_a_planted_regression_of_labels_is_not_passed(examples: int, lost: float, gained: float) -> None:
    """The true accuracy drops by 1.01 points; at a margin of 1, the gate passes it in at most 5 % of the cases."""
    generator = np.random.default_rng([examples, round(1e4 * lost)])
    drawn = generator.multinomial(examples, [gained, lost, 1 - gained - lost], size=REPETITIONS)
    kinds, often = np.unique(drawn[:, :2], axis=0, return_counts=True)
    passed = sum(
        int(times)
        for (won, gone), times in zip(kinds, often, strict=True)
        if paired_accuracy(int(won), int(gone), examples).lower > -0.01
    )

    assert passed / REPETITIONS <= ALPHA + CHANCE


@pytest.mark.parametrize("examples", [200, 270, 299, 473, 1000, 3000])
def test_the_error_rate_is_exact_where_nothing_is_gained(examples: int) -> None:
    """Computed exactly: if answers are only lost, a drop of the margin passes in at most 5 % of the cases."""
    passed = sum(
        math.comb(examples, lost) * 0.01**lost * 0.99 ** (examples - lost)
        for lost in range(examples // 50)
        if paired_accuracy(0, lost, examples).lower > -0.01
    )

    assert passed <= ALPHA


def sentences(
    generator: np.random.Generator, count: int, shares: tuple[float, ...], *, lost: float, gained: float, whole: float
) -> tuple[list[SpanCounts], list[SpanCounts]]:
    """Draw sentences with most spans correct; then some are lost, some gained, and some whole sentences go wrong."""
    spans = generator.choice(len(shares), size=count, p=shares)
    actual = generator.binomial(spans, FOUND)
    after = actual - generator.binomial(actual, lost) + generator.binomial(spans - actual, gained)
    after[generator.random(count) < whole] = 0
    return (
        [KINDS[all_of_it][right] for all_of_it, right in zip(spans.tolist(), actual.tolist(), strict=True)],
        [KINDS[all_of_it][right] for all_of_it, right in zip(spans.tolist(), after.tolist(), strict=True)],
    )


@pytest.mark.parametrize("count", [50, 300, 1000])
@pytest.mark.parametrize(
    ("shares", "lost", "gained", "whole"),
    [(DENSE, 0.032, 0.4, 0.0), (SPARSE, 0.0, 0.0, 0.0107), (SPARSE, 0.032, 0.4, 0.0)],
)
def test_a_planted_regression_of_spans_is_not_passed(
    count: int, shares: tuple[float, ...], lost: float, gained: float, whole: float
) -> None:
    """The true F1 drops by about a point and the margin is 1 % smaller; the gate passes it in at most 5 % of the cases."""
    generator = np.random.default_rng([count, len(shares), round(1e4 * lost)])
    fall = FOUND - (1 - whole) * (FOUND * (1 - lost) + (1 - FOUND) * gained)
    passed = 0
    for number in range(REPETITIONS):
        before, after = sentences(generator, count, shares, lost=lost, gained=gained, whole=whole)
        passed += paired_f1(before, after, seed=number, resamples=RESAMPLES).lower > -0.99 * fall

    assert passed / REPETITIONS <= ALPHA + CHANCE


def test_no_change_is_passed_when_there_is_enough_to_see_it() -> None:
    """Without a true change, 2,000 examples pass almost always."""
    generator = np.random.default_rng(0)
    by_label = [
        paired_accuracy(int(won), int(gone), 2000).lower > -0.01
        for won, gone, _ in generator.multinomial(2000, [0.005, 0.005, 0.99], size=REPETITIONS)
    ]
    by_span = []
    for number in range(200):
        before, after = sentences(generator, 2000, DENSE, lost=0.003, gained=0.057, whole=0.0)
        by_span.append(paired_f1(before, after, seed=number, resamples=RESAMPLES).lower > -0.01)

    assert np.mean(by_label) > 0.95
    assert np.mean(by_span) > 0.95

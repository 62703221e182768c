"""Paired bounds compared with published values, closed forms and a numerical maximum of the likelihood."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twofold_trainer.scoring.noninferiority import (
    clopper_pearson,
    needed_examples,
    paired_accuracy,
    paired_f1,
    provable_margin,
    tango,
    tango_score,
)
from twofold_trainer.scoring.scores import SpanCounts

Z = NormalDist().inv_cdf(0.95)


def test_tango_published_statistic() -> None:
    """Tango 1998, cross-over trial of two lens disinfections: one of 44 pairs lost, margin 0.1, gives z = 1.709."""
    assert tango_score(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)


def test_tango_published_interval() -> None:
    """Airway hyper-reactivity, 1 gained and 7 lost of 21: the 95 % score interval is -0.517 to -0.026."""
    bounds = tango(1, 7, 21, alpha=0.025)

    assert bounds.difference == pytest.approx(-6 / 21)
    assert bounds.lower == pytest.approx(-0.517, abs=5e-4)
    assert bounds.upper == pytest.approx(-0.026, abs=5e-4)


@pytest.mark.parametrize("examples", [10, 50, 700, 5000])
def test_bounds_without_changed_answers(examples: int) -> None:
    """If no answer changed, the bounds are plus and minus z^2 / (n + z^2)."""
    bounds = tango(0, 0, examples)

    assert bounds.lower == pytest.approx(-(Z**2) / (examples + Z**2))
    assert bounds.upper == pytest.approx(Z**2 / (examples + Z**2))


@pytest.mark.parametrize("examples", [1, 10, 50, 700])
def test_the_exact_bound_without_events(examples: int) -> None:
    """Without events among n, the exact bound is 1 - alpha^(1/n), about 3 / n; with n events it is 1."""
    assert clopper_pearson(0, examples) == pytest.approx(1 - 0.05 ** (1 / examples))
    assert clopper_pearson(examples, examples) == 1


@pytest.mark.parametrize(("events", "examples"), [(1, 20), (3, 100), (9, 10), (40, 3000)])
def test_the_exact_bound_is_where_the_tail_is_alpha(events: int, examples: int) -> None:
    """At the bound, the probability of as many events or fewer is alpha."""
    share = clopper_pearson(events, examples)
    tail = sum(math.comb(examples, k) * share**k * (1 - share) ** (examples - k) for k in range(events + 1))

    assert tail == pytest.approx(0.05, rel=1e-6)


COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200)).map(
    lambda item: (item[0], item[1], item[0] + item[1] + item[2] + 1)
)


@given(COUNTS)
def test_bounds_mirror_each_other(counts: tuple[int, int, int]) -> None:
    """Exchanging gains and losses mirrors the interval, which always contains the difference."""
    gained, lost, examples = counts
    first, second = paired_accuracy(gained, lost, examples), paired_accuracy(lost, gained, examples)

    assert first.lower == pytest.approx(-second.upper, abs=1e-9)
    assert first.lower <= first.difference + 1e-9
    assert first.difference <= first.upper + 1e-9


@given(COUNTS)
def test_the_lower_bound_is_monotonic(counts: tuple[int, int, int]) -> None:
    """One more lost answer or one less gained answer never raises the lower bound."""
    gained, lost, examples = counts
    bound = paired_accuracy(gained, lost, examples + 1).lower

    assert paired_accuracy(gained, lost + 1, examples + 1).lower <= bound + 1e-9
    assert paired_accuracy(gained + 1, lost, examples + 1).lower >= bound - 1e-9


@given(COUNTS)
def test_the_corrected_bounds_are_never_narrower(counts: tuple[int, int, int]) -> None:
    """The exact bound only widens Tango's interval, and leaves it unchanged if there are gains and losses."""
    gained, lost, examples = counts
    score, corrected = tango(gained, lost, examples), paired_accuracy(gained, lost, examples)

    assert corrected.lower <= score.lower
    assert corrected.upper >= score.upper
    assert corrected == score or not (gained and lost)


@pytest.mark.parametrize(("gained", "lost", "examples"), [(0, 1, 44), (1, 7, 21), (5, 2, 300), (3, 3, 60)])
@pytest.mark.parametrize("difference", [-0.2, -0.05, 0.03])
def test_the_restricted_likelihood_is_maximal(gained: int, lost: int, examples: int, difference: float) -> None:
    """The closed-form probability of losing maximises the likelihood."""

    def likelihood(losing: np.ndarray) -> np.ndarray:
        gaining = losing + difference
        rest = 1 - losing - gaining
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = [
                np.where(n > 0, n * np.log(np.maximum(p, 1e-300)), 0.0)
                for n, p in ((gained, gaining), (lost, losing), (examples - gained - lost, rest))
            ]
        return sum(logs)

    grid = np.linspace(max(0.0, -difference), (1 - difference) / 2, 400_001)
    best = grid[np.argmax(likelihood(grid))]
    variance = examples * (2 * best + difference * (1 - difference))
    searched = (gained - lost - examples * difference) / math.sqrt(variance)

    assert tango_score(gained, lost, examples, difference) == pytest.approx(searched, rel=2e-3)


@pytest.mark.parametrize(
    ("examples", "share", "points"),
    [
        (300, 0.005, 1.02),
        (300, 0.04, 2.87),
        (700, 0.02, 1.33),
        (893, 0.01, 0.83),
        (2000, 0.02, 0.79),
        (5000, 0.005, 0.25),
    ],
)
def test_provable_margin_and_needed_examples(examples: int, share: float, points: float) -> None:
    """The smallest margin is 2.49 sqrt(p / n), and needed_examples() inverts it."""
    assert 100 * provable_margin(examples, share) == pytest.approx(points, abs=0.006)
    assert needed_examples(share, provable_margin(examples, share)) == pytest.approx(examples, abs=1)


def test_unchanged_answers_still_need_examples() -> None:
    """If no answer changed, the needed examples are the fewest whose bound passes the margin."""
    needed = needed_examples(0.0, 0.01)

    assert paired_accuracy(0, 0, needed).lower > -0.01
    assert paired_accuracy(0, 0, needed - 1).lower < -0.01


def test_f1_difference_is_that_of_all_spans() -> None:
    """The difference is between the micro F1 of all sentences, and the bounds contain it."""
    before = [SpanCounts(2, 2, 2)] * 90 + [SpanCounts(1, 2, 2)] * 10
    after = [SpanCounts(2, 2, 2)] * 85 + [SpanCounts(1, 2, 2)] * 15
    bounds = paired_f1(before, after)

    assert bounds.difference == pytest.approx((185 - 190) / 200)
    assert bounds.lower < bounds.difference < bounds.upper < 0.01


def test_unchanged_spans_prove_no_more_than_unchanged_labels() -> None:
    """Without differences, the F1 bound is that of labels, or wider if the sentences differ; a bootstrap alone would have no width."""
    same = [SpanCounts(2, 2, 2)] * 50
    uneven = [SpanCounts(1, 1, 1), SpanCounts(3, 3, 3)] * 25

    assert paired_f1(same, same).lower == pytest.approx(paired_accuracy(0, 0, 50).lower)
    assert paired_f1(uneven, uneven).lower == pytest.approx(math.sqrt(5 / 4) * paired_accuracy(0, 0, 50).lower)


def test_texts_without_spans_have_bounds() -> None:
    """For texts without spans, an empty prediction is no change and a predicted span is a change."""
    none, wrong = [SpanCounts(0, 0, 0)] * 50, [SpanCounts(0, 0, 0)] * 49 + [SpanCounts(0, 1, 0)]

    assert paired_f1(none, none).lower == pytest.approx(paired_accuracy(0, 0, 50).lower)
    assert paired_f1(none, wrong).difference == -1


def test_bounds_stay_within_one() -> None:
    """The bounds of a difference are from -1 to 1, however few the examples."""
    nothing, everything = [SpanCounts(0, 0, 1)] * 5, [SpanCounts(1, 1, 1)] * 5

    assert paired_f1(nothing, everything).upper == 1
    assert paired_f1(everything, nothing).lower == -1


def test_many_changed_sentences_approach_the_normal_bounds() -> None:
    """With many changed sentences, the bounds are close to the normal approximation for the mean change."""
    generator = np.random.default_rng(0)
    before = [SpanCounts(2, 2, 2)] * 3000
    after = [SpanCounts(2 - int(lost), 2, 2) for lost in generator.random(3000) < 0.2]
    bounds = paired_f1(before, after)
    moved = np.array([(counts.right - 2) / 2 for counts in after])
    spread = Z * moved.std() / math.sqrt(3000)

    assert bounds.difference - bounds.lower == pytest.approx(spread, rel=0.15)


def test_the_same_seed_gives_the_same_bounds() -> None:
    """The bounds are a function of the counts and the seed."""
    before = [SpanCounts(2, 3, 2), SpanCounts(1, 1, 1)] * 40
    after = [SpanCounts(2, 2, 2), SpanCounts(0, 1, 1)] * 40

    assert paired_f1(before, after, seed=3) == paired_f1(before, after, seed=3)

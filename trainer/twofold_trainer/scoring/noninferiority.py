"""Paired bounds for non-inferiority tests: is the new model worse than the old one by at most a margin? Scores are from 0 to 1.

A test that detects no difference proves nothing; these bounds state what the examples prove. Each is one-sided at *alpha*.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from twofold_trainer.scoring.scores import SpanCounts

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 5000


@dataclass(frozen=True, slots=True)
class Bounds:
    """The difference new minus old, with a lower and an upper bound, each one-sided."""

    difference: float
    lower: float
    upper: float
    weight: float = 1.0
    """The effect of one changed example on the score, in units of 1 / examples; 1 for labels."""


def paired_accuracy(gained: int, lost: int, examples: int, *, alpha: float = ALPHA) -> Bounds:
    """Bound the difference of two accuracies on the same examples: Tango's interval, widened by an exact one if no answer was gained or none was lost.

    If no answer was gained, the losses are binomial, and Tango's test at 5 % would pass a true drop of the margin in up to
    6.7 % of cases. The lower bound is then at most the exact one of Clopper and Pearson 1934 (Biometrika 26:404-413),
    and likewise the upper bound if no answer was lost. With this correction, the error rate is at most 5.9 %, which
    occurs at about 50 to 400 examples.
    """
    score = tango(gained, lost, examples, alpha=alpha)
    lower = score.lower if gained else min(score.lower, -clopper_pearson(lost, examples, alpha=alpha))
    upper = score.upper if lost else max(score.upper, clopper_pearson(gained, examples, alpha=alpha))
    return replace(score, lower=lower, upper=upper)


def tango(gained: int, lost: int, examples: int, *, alpha: float = ALPHA) -> Bounds:
    """Bound the difference of two paired proportions by the score interval of Tango 1998 (Statistics in Medicine 17:891-908).

    *gained* answers are right only after, *lost* answers only before. The interval is also defined for small counts and 0.
    """
    z = NormalDist().inv_cdf(1 - alpha)
    return Bounds(
        (gained - lost) / examples,
        _difference_at(z, gained, lost, examples) if gained - lost > -examples else -1.0,
        _difference_at(-z, gained, lost, examples) if gained - lost < examples else 1.0,
    )


def _difference_at(score: float, gained: int, lost: int, examples: int) -> float:
    """Return the difference at which Tango's statistic, which falls with the difference, equals *score*."""
    from scipy.optimize import bisect  # noqa: PLC0415, importing scipy takes longer than most commands

    return float(bisect(lambda difference: tango_score(gained, lost, examples, difference) - score, -1.0, 1.0))


def tango_score(gained: int, lost: int, examples: int, difference: float) -> float:
    """Return Tango's z statistic for the hypothesis that the true difference of the proportions is *difference*."""
    n, shift = examples, difference * (1 - difference)
    b = -gained - lost + (2 * n - gained + lost) * difference
    # The maximum-likelihood estimate of the probability of losing, given the difference.
    losing = (math.sqrt(max(0.0, b * b + 8 * n * lost * shift)) - b) / (4 * n)
    variance = n * (2 * losing + shift)
    surplus = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf, surplus) if surplus else 0.0
    return surplus / math.sqrt(variance)


def clopper_pearson(events: int, examples: int, *, alpha: float = ALPHA) -> float:
    """Return the exact upper bound of a probability (Clopper and Pearson 1934), as a quantile of the beta distribution."""
    from scipy.special import betaincinv  # noqa: PLC0415, importing scipy takes longer than most commands

    return float(betaincinv(events + 1, examples - events, 1 - alpha)) if events < examples else 1.0


def paired_f1(
    before: Sequence[SpanCounts],
    after: Sequence[SpanCounts],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
) -> Bounds:
    """Bound the difference of two micro F1 on the same sentences, by a paired bootstrap over sentences.

    A bootstrap only resamples differences that occurred: its bounds are too narrow if there are few of them, and have no
    width if there are none. So the bounds are never narrower than those of paired_accuracy for changed sentences, times
    the effect of one changed sentence on F1. That effect is the root mean square over the changed sentences; if these
    are few, it is shrunk towards the effect of losing a whole sentence. tests/trainer/evaluation/test_gate_simulation.py
    checks the error rate. It is up to 7 % if a tenth of the sentences contain two fifths of the spans and errors affect
    whole sentences.
    """
    distinct = Counter(zip(before, after, strict=True))  # Sentences with equal counts are resampled together.
    counts = np.array([_row(*pair) for pair in distinct], dtype=np.float64)
    frequencies = np.array(list(distinct.values()), dtype=np.float64)
    n = int(frequencies.sum())
    difference = float(_f1_difference(frequencies @ counts))
    generator = np.random.default_rng(seed)
    resampled = generator.multinomial(n, frequencies / n, size=resamples).astype(np.float64)
    differences = _f1_difference(resampled @ counts)
    low, high = np.quantile(differences, (alpha, 1 - alpha))

    # For each distinct row, the effect on F1 if only one sentence with this row changes, in units of 1 / n.
    totals = frequencies @ counts
    single_change = np.tile(totals, (len(counts), 1))
    single_change[:, 3:] = totals[:3] + counts[:, 3:] - counts[:, :3]
    effects = n * _f1_difference(single_change)
    gained, lost = int(frequencies[effects > 0].sum()), int(frequencies[effects < 0].sum())
    prior = NormalDist().inv_cdf(1 - alpha) ** 2  # The weight of the shrinkage, as a number of changed sentences.
    squares = float(frequencies @ effects**2) + prior * _mean_square_weight(counts, frequencies)
    weight = math.sqrt(squares / (gained + lost + prior))
    by_sentence = paired_accuracy(gained, lost, n, alpha=alpha)
    return Bounds(
        difference,
        max(-1.0, min(float(low), difference - weight * (by_sentence.difference - by_sentence.lower))),
        min(1.0, max(float(high), difference + weight * (by_sentence.upper - by_sentence.difference))),
        weight,
    )


def _mean_square_weight(counts: NDArray[np.float64], frequencies: NDArray[np.float64]) -> float:
    """Return the mean square weight of the sentences with spans. A sentence's weight is its share of spans; the mean is 1."""
    spans = counts[:, 1] + counts[:, 2]
    present = spans > 0
    if not present.any():
        return 1.0
    return float(
        np.average(spans[present] ** 2, weights=frequencies[present]) / np.average(spans, weights=frequencies) ** 2
    )


def _row(before: SpanCounts, after: SpanCounts) -> tuple[int, ...]:
    """Return the six counts of a sentence: right, predicted and expected before, then after."""
    return before.right, before.predicted, before.expected, after.right, after.predicted, after.expected


def _f1_difference(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 after minus F1 before, from sums of counts (..., 6). F1 is 1 if there are no spans at all."""
    scores = []
    for part in (totals[..., :3], totals[..., 3:]):
        spans = part[..., 1] + part[..., 2]
        scores.append(np.where(spans > 0, 2 * part[..., 0] / np.maximum(spans, 1), 1.0))
    return np.asarray(scores[1] - scores[0])


EXPECTED_FLIPS = 0.01
"""Share of the protected answers that change even under good protection. It determines the provable margin."""


def provable_margin(examples: int, discordant_share: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the smallest margin that *examples* prove if *discordant_share* of the answers changed and the score did not drop."""
    return _quantiles(alpha, power) * math.sqrt(discordant_share / examples)


def needed_examples(discordant_share: float, margin: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Return the number of examples that prove the margin if *discordant_share* of the answers change and the score does not drop.

    If few answers change, it is the number at which a true drop by the margin stays undetected with probability *alpha*.
    """
    untouched = math.log(alpha) / math.log1p(-margin)
    return math.ceil(max(untouched, _quantiles(alpha, power) ** 2 * discordant_share / margin**2))


def _quantiles(alpha: float, power: float) -> float:
    return NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)

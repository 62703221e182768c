"""Is the new model not worse than the old one by more than a margin? Paired bounds, in shares from 0 to 1.

Not finding a difference proves nothing; these bounds say what the examples do prove. All are one-sided, each at *alpha*.
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
    """Hold the difference new minus old, with a lower and an upper bound of it, each one-sided."""

    difference: float
    lower: float
    upper: float
    weight: float = 1.0
    """What a changed example moves the score by, in units of 1 / examples; 1 of a label."""


def paired_accuracy(gained: int, lost: int, examples: int, *, alpha: float = ALPHA) -> Bounds:
    """Bound the difference of two accuracies on the same examples: Tango's interval, made exact where one side is empty.

    Where no answer was gained, the losses are binomial, and Tango's test lets a true fall by the margin pass in up to
    6.7 % of the cases at 5 %. The bound is then no tighter than the exact one of Clopper and Pearson 1934 (Biometrika
    26:404-413), and the same on the other side. What is left is at most 5.9 %, at some fifty to four hundred examples.
    """
    score = tango(gained, lost, examples, alpha=alpha)
    lower = score.lower if gained else min(score.lower, -clopper_pearson(lost, examples, alpha=alpha))
    upper = score.upper if lost else max(score.upper, clopper_pearson(gained, examples, alpha=alpha))
    return replace(score, lower=lower, upper=upper)


def tango(gained: int, lost: int, examples: int, *, alpha: float = ALPHA) -> Bounds:
    """Bound the difference of two paired proportions: *gained* right only after, *lost* right only before.

    The score interval of Tango 1998 (Statistics in Medicine 17:891-908), defined at small counts, zero included.
    """
    z = NormalDist().inv_cdf(1 - alpha)

    return Bounds(
        (gained - lost) / examples,
        _difference_at(z, gained, lost, examples) if gained - lost > -examples else -1.0,
        _difference_at(-z, gained, lost, examples) if gained - lost < examples else 1.0,
    )


def _difference_at(score: float, gained: int, lost: int, examples: int) -> float:
    """Return the difference at which Tango's falling *score* is reached."""
    from scipy.optimize import bisect  # noqa: PLC0415, importing scipy takes longer than most commands

    return float(bisect(lambda difference: tango_score(gained, lost, examples, difference) - score, -1.0, 1.0))


def tango_score(gained: int, lost: int, examples: int, difference: float) -> float:
    """Return Tango's z of the hypothesis that the true difference of the proportions is *difference*."""
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

    A bootstrap sees only differences that occurred: with few of them it promises too much, and with none everything.
    So the bound is never tighter than paired_accuracy's for sentences that changed, times what one of those moves F1:
    the root mean square of what they did here, drawn toward that of losing a whole sentence while there are few.
    Simulations in tests/trainer/test_gate_simulation.py hold it to its error rate. Where a tenth of the sentences hold
    two fifths of the spans and whole sentences go wrong, it is still up to 7 %.
    """
    kinds = Counter(zip(before, after, strict=True))
    counts = np.array([_numbers(*kind) for kind in kinds], dtype=np.float64)
    often = np.array(list(kinds.values()), dtype=np.float64)
    n = int(often.sum())
    difference = float(_f1_difference(often @ counts))
    generator = np.random.default_rng(seed)
    resampled = generator.multinomial(n, often / n, size=resamples).astype(np.float64)
    differences = _f1_difference(resampled @ counts)
    low, high = np.quantile(differences, (alpha, 1 - alpha))

    # How far F1 moves if one kind's sentences are changed and no others, for one sentence, in units of 1 / n.
    totals = often @ counts
    only = np.tile(totals, (len(counts), 1))
    only[:, 3:] = totals[:3] + counts[:, 3:] - counts[:, :3]
    moves = n * _f1_difference(only)
    gained, lost = int(often[moves > 0].sum()), int(often[moves < 0].sum())
    few = NormalDist().inv_cdf(1 - alpha) ** 2
    weight = math.sqrt((float(often @ moves**2) + few * _whole(counts, often)) / (gained + lost + few))
    coarse = paired_accuracy(gained, lost, n, alpha=alpha)
    return Bounds(
        difference,
        max(-1.0, min(float(low), difference - weight * (coarse.difference - coarse.lower))),
        min(1.0, max(float(high), difference + weight * (coarse.upper - coarse.difference))),
        weight,
    )


def _whole(counts: NDArray[np.float64], often: NDArray[np.float64]) -> float:
    """Return the mean square weight of the sentences that have spans, the average weight of all being 1."""
    spans = counts[:, 1] + counts[:, 2]
    present = spans > 0
    if not present.any():
        return 1.0
    return float(np.average(spans[present] ** 2, weights=often[present]) / np.average(spans, weights=often) ** 2)


def _numbers(before: SpanCounts, after: SpanCounts) -> tuple[int, ...]:
    return before.right, before.predicted, before.expected, after.right, after.predicted, after.expected


def _f1_difference(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 after minus F1 before of (..., 6) sums of counts; F1 is 1 where there was nothing to find or found."""
    scores = []
    for part in (totals[..., :3], totals[..., 3:]):
        spans = part[..., 1] + part[..., 2]
        scores.append(np.where(spans > 0, 2 * part[..., 0] / np.maximum(spans, 1), 1.0))
    return np.asarray(scores[1] - scores[0])


EXPECTED_FLIPS = 0.01
"""Share of the protected answers that a well-protected training still changes. It sets the margin that can be proven."""


def provable_margin(examples: int, discordant_share: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the smallest margin that so many examples prove, if nothing was lost and so many answers changed."""
    return _quantiles(alpha, power) * math.sqrt(discordant_share / examples)


def needed_examples(discordant_share: float, margin: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Return how many examples prove the margin, if nothing was lost and so many answers change.

    Where few answers change, it takes as many as show no loss in *alpha* of the cases in which so large a share is lost.
    """
    untouched = math.log(alpha) / math.log1p(-margin)
    return math.ceil(max(untouched, _quantiles(alpha, power) ** 2 * discordant_share / margin**2))


def _quantiles(alpha: float, power: float) -> float:
    return NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)

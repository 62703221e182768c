"""Is the new model not worse than the old one by more than a margin? Paired bounds, in shares from 0 to 1.

Not finding a difference proves nothing; these bounds say what the examples do prove. All are one-sided, each at *alpha*.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from twofold_trainer.metrics import SpanCounts

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 5000


@dataclass(frozen=True, slots=True)
class Bounds:
    """Hold the difference new minus old, with a lower and an upper bound of it, each one-sided."""

    difference: float
    lower: float
    upper: float


def tango(gained: int, lost: int, examples: int, *, alpha: float = ALPHA) -> Bounds:
    """Bound the difference of two paired proportions: *gained* right only after, *lost* right only before.

    The score interval of Tango 1998 (Statistics in Medicine 17:891-908), which holds at small counts, zero included.
    """
    z = NormalDist().inv_cdf(1 - alpha)

    def solve(target: float) -> float:
        low, high = -1.0, 1.0  # The statistic falls from plus to minus infinity between them.
        for _ in range(60):
            middle = (low + high) / 2
            if tango_score(gained, lost, examples, middle) > target:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    return Bounds((gained - lost) / examples, solve(z), solve(-z))


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
    So the bound is never tighter than Tango's for sentences that changed, times what one of those moves F1: the root
    mean square of what they did here, drawn toward a whole average sentence while there are few. Simulations in
    tests/trainer/test_gate_simulation.py hold it to its error rate.
    """
    kinds = Counter(zip(before, after, strict=True))
    counts = np.array([_numbers(*kind) for kind in kinds], dtype=np.float64)
    often = np.array(list(kinds.values()), dtype=np.float64)
    n = int(often.sum())
    difference = float(_f1_difference(often @ counts))
    generator = np.random.default_rng(seed)
    resampled = generator.multinomial(n, often / n, size=resamples).astype(np.float64)
    found = _f1_difference(resampled @ counts)
    low, high = np.quantile(found, (alpha, 1 - alpha))

    # How far F1 moves if one kind's sentences are changed and no others, for one sentence, in units of 1 / n.
    totals = often @ counts
    only = np.tile(totals, (len(counts), 1))
    only[:, 3:] = totals[:3] + counts[:, 3:] - counts[:, :3]
    moves = n * _f1_difference(only)
    gained, lost = int(often[moves > 0].sum()), int(often[moves < 0].sum())
    z2 = NormalDist().inv_cdf(1 - alpha) ** 2
    size = math.sqrt((float(often @ moves**2) + z2) / (gained + lost + z2))
    coarse = tango(gained, lost, n, alpha=alpha)
    centre = size * coarse.difference
    return Bounds(
        difference,
        min(float(low), difference + size * coarse.lower - centre),
        max(float(high), difference + size * coarse.upper - centre),
    )


def _numbers(before: SpanCounts, after: SpanCounts) -> tuple[int, ...]:
    return before.right, before.predicted, before.expected, after.right, after.predicted, after.expected


def _f1_difference(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 after minus F1 before of (..., 6) sums of counts; F1 is 1 where there was nothing to find or found."""
    scores = []
    for part in (totals[..., :3], totals[..., 3:]):
        spans = part[..., 1] + part[..., 2]
        scores.append(np.where(spans > 0, 2 * part[..., 0] / np.maximum(spans, 1), 1.0))
    return np.asarray(scores[1] - scores[0])


def provable_margin(examples: int, discordant_share: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the smallest margin that so many examples prove, if nothing was lost and so many answers changed."""
    return _quantiles(alpha, power) * math.sqrt(discordant_share / examples)


def needed_examples(discordant_share: float, margin: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Return how many examples prove the margin, if nothing was lost and so many answers change.

    Where no answer has changed, the margin itself bounds what is left to rule out: n is z^2 (1 - margin) / margin.
    """
    untouched = NormalDist().inv_cdf(1 - alpha) ** 2 * (1 - margin) / margin
    return math.ceil(max(untouched, _quantiles(alpha, power) ** 2 * discordant_share / margin**2))


def _quantiles(alpha: float, power: float) -> float:
    return NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)

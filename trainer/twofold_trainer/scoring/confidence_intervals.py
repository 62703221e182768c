"""How far a score may be off, for the number of examples that it was measured on."""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist

import numpy as np
from twofold_checkpoint.protocol.findings import Interval

from twofold_trainer.scoring.noninferiority import ALPHA, RESAMPLES
from twofold_trainer.scoring.scores import HeadScore, SpanCounts


def interval(score: HeadScore, *, seed: int = 0) -> Interval:
    """Bound one score: Wilson's interval of an accuracy; of F1 a bootstrap over texts, and never tighter than that.

    A bootstrap of texts that are all answered right would be sure; Wilson's interval of as many texts is not.
    """
    low, high = wilson(score.value, score.examples)
    counts = [outcome for outcome in score.outcomes if isinstance(outcome, SpanCounts)]
    if counts:
        interval = _bootstrap(counts, seed)
        low, high = min(low, interval[0]), max(high, interval[1])
    return Interval(value=score.value, low=low, high=high)


def wilson(share: float, examples: int, *, alpha: float = ALPHA) -> tuple[float, float]:
    """Bound a share of so many examples (Wilson 1927, JASA 22:209-212), on each side at *alpha*."""
    z = NormalDist().inv_cdf(1 - alpha)
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    reach = z / (1 + z * z / examples) * math.sqrt(share * (1 - share) / examples + z * z / (4 * examples**2))
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))


def _bootstrap(counts: list[SpanCounts], seed: int) -> tuple[float, float]:
    kinds = Counter(counts)
    numbers = np.array([(kind.right, kind.predicted + kind.expected) for kind in kinds], dtype=np.float64)
    often = np.array(list(kinds.values()), dtype=np.float64)
    drawn = np.random.default_rng(seed).multinomial(int(often.sum()), often / often.sum(), size=RESAMPLES) @ numbers
    scores = np.where(drawn[:, 1] > 0, 2 * drawn[:, 0] / np.maximum(drawn[:, 1], 1), 1.0)
    low, high = np.quantile(scores, (ALPHA, 1 - ALPHA))
    return float(low), float(high)

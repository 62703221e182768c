"""Confidence intervals of scores."""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist

import numpy as np
from twofold_checkpoint.protocol.findings import Interval

from twofold_trainer.scoring.noninferiority import ALPHA, RESAMPLES
from twofold_trainer.scoring.scores import HeadScore, SpanCounts


def interval(score: HeadScore, *, seed: int = 0) -> Interval:
    """Return the interval of a score: Wilson's for accuracy, and for F1 a bootstrap over texts that is never narrower than Wilson's.

    If all texts are answered correctly, the bootstrap has no width, but Wilson's interval has one.
    """
    low, high = wilson(score.value, score.examples)
    counts = [outcome for outcome in score.outcomes if isinstance(outcome, SpanCounts)]
    if counts:
        bootstrap_low, bootstrap_high = _bootstrap(counts, seed)
        low, high = min(low, bootstrap_low), max(high, bootstrap_high)
    return Interval(value=score.value, low=low, high=high)


def wilson(share: float, examples: int, *, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the interval of a share of *examples* (Wilson 1927, JASA 22:209-212), with error *alpha* on each side."""
    z = NormalDist().inv_cdf(1 - alpha)
    center = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    half_width = z / (1 + z * z / examples) * math.sqrt(share * (1 - share) / examples + z * z / (4 * examples**2))
    return max(0.0, min(share, center - half_width)), min(1.0, max(share, center + half_width))


def _bootstrap(counts: list[SpanCounts], seed: int) -> tuple[float, float]:
    """Return the percentile interval of the micro F1 over resampled texts."""
    distinct = Counter(counts)  # Texts with equal counts are resampled together.
    numbers = np.array([(text.right, text.predicted + text.expected) for text in distinct], dtype=np.float64)
    frequencies = np.array(list(distinct.values()), dtype=np.float64)
    resampled = (
        np.random.default_rng(seed).multinomial(int(frequencies.sum()), frequencies / frequencies.sum(), size=RESAMPLES)
        @ numbers
    )
    scores = np.where(resampled[:, 1] > 0, 2 * resampled[:, 0] / np.maximum(resampled[:, 1], 1), 1.0)
    low, high = np.quantile(scores, (ALPHA, 1 - ALPHA))
    return float(low), float(high)

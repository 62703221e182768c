"""Statistical analysis of a checkpoint under live traffic: does it exceed its limits? Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_server.config.settings import RollbackSettings

Cause = Literal["errors", "latency", "agreement"]
CAUSES: tuple[Cause, ...] = ("errors", "latency", "agreement")

ALPHA = 1e-3
"""Significance level: maximum probability that a rate within its limit is ever reported as above it, for any number of looks."""
SLOW_SHARE = 0.05
"""Maximum share of slow texts, so that the slowdown limit applies to the 95th percentile."""
_ALTERNATIVES = 40


@dataclass(frozen=True, slots=True)
class Rate:
    """A count of *failures* in *total* samples."""

    failures: int = 0
    total: int = 0

    def __add__(self, failed: bool) -> Rate:
        return Rate(self.failures + failed, self.total + 1)


@dataclass(frozen=True, slots=True)
class SwapStats:
    """Counts for one checkpoint: its live batches, and its comparison with a reference checkpoint."""

    passes: Rate = Rate()
    """Live batches; failures: batches that failed."""
    texts: Rate = Rate()
    """Compared texts; failures: errors or non-finite outputs of this checkpoint only."""
    slow: Rate = Rate()
    """Compared texts; failures: texts slower than the reference by more than the limit."""
    differing: Mapping[HeadName, Rate] = field(default_factory=lambda: dict.fromkeys(HEADS, Rate()))
    """Comparable texts by head; failures: texts with different predictions."""

    def agreement(self, head: HeadName) -> float | None:
        """Return the share of texts on which a head agrees with the reference; None without comparable texts."""
        seen = self.differing[head]
        return 1 - seen.failures / seen.total if seen.total else None


@dataclass(frozen=True, slots=True)
class Regression:
    """The reason why a checkpoint is bad. *message* is a sentence without a full stop."""

    cause: Cause
    message: str


def exceeds_limit(seen: Rate, limit: float, alpha: float = ALPHA) -> bool:
    """Return whether a rate is significantly above *limit*. This is a sequential test.

    It can be repeated after each sample: if the true rate is within the limit, the probability that the test is ever positive
    is at most *alpha*. In that case the likelihood ratio of a mixture of rates above the limit against the limit is a
    nonnegative supermartingale, which ever exceeds 1/alpha with at most that probability (Ville 1939; Robbins 1970).
    """
    if limit >= 1 or not seen.failures:
        return False
    if limit <= 0:
        return True
    good = seen.total - seen.failures
    # Denser near the limit, where the test needs more samples.
    shares = [limit + (1 - limit) * (step / _ALTERNATIVES) ** 2 for step in range(1, _ALTERNATIVES + 1)]
    ratios = [
        seen.failures * math.log(share / limit) + (good * math.log((1 - share) / (1 - limit)) if good else 0.0)
        for share in shares
        if share < 1 or not good
    ]
    top = max(ratios)
    mixture = top + math.log(sum(math.exp(ratio - top) for ratio in ratios) / _ALTERNATIVES)
    return mixture >= -math.log(alpha)


def find_regression(stats: SwapStats, limits: RollbackSettings, adapted: HeadName | None) -> Regression | None:
    """Return the first significant regression, or None. *adapted* is the head that the job adapted."""
    return next(_regressions(stats, limits, adapted), None)


def reject_reason(stats: SwapStats, limits: RollbackSettings, adapted: HeadName | None) -> Regression | None:
    """Return why a candidate is rejected after its shadow test, or None.

    Before promotion the burden of proof is on the candidate: an observed agreement below the minimum rejects it even if that
    is not significant, provided that there are enough samples.
    """
    if regression := find_regression(stats, limits, adapted):
        return regression
    for head in HEADS:
        seen, minimum = stats.differing[head], _min_agreement(limits, head, adapted)
        if seen.total >= limits.min_samples and seen.total - seen.failures < minimum * seen.total:
            return _disagreement(head, seen, minimum)
    return None


def _regressions(stats: SwapStats, limits: RollbackSettings, adapted: HeadName | None) -> Iterator[Regression]:
    for seen, what in ((stats.passes, "passes"), (stats.texts, "texts")):
        if seen.total >= limits.min_samples and exceeds_limit(seen, limits.max_error_rate):
            yield Regression(
                "errors", f"{seen.failures} of {seen.total} {what} failed (limit {limits.max_error_rate:.1%})"
            )
    if stats.slow.total >= limits.min_samples and exceeds_limit(stats.slow, SLOW_SHARE):
        message = f"{stats.slow.failures} of {stats.slow.total} texts took more than {limits.max_slowdown:g} times as long as before"
        yield Regression("latency", f"{message} (limit {SLOW_SHARE:.0%})")
    for head in HEADS:
        seen = stats.differing[head]
        minimum = _min_agreement(limits, head, adapted)
        if seen.total >= limits.min_samples and exceeds_limit(seen, 1 - minimum):
            yield _disagreement(head, seen, minimum)


def _min_agreement(limits: RollbackSettings, head: HeadName, adapted: HeadName | None) -> float:
    """Return the minimum agreement of a head. The wide limit applies to the adapted head, or to both if it is unknown."""
    return limits.min_adapted_agreement if adapted in {head, None} else limits.min_agreement


def _disagreement(head: HeadName, seen: Rate, minimum: float) -> Regression:
    message = f"the {head} head agrees on {seen.total - seen.failures} of {seen.total} texts"
    return Regression("agreement", f"{message} (minimum {minimum:.0%})")

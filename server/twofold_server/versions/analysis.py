"""What was seen of a checkpoint under live requests, and whether that is enough to say that it is bad. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from twofold_checkpoint.manifest import HEADS, HeadName

Cause = Literal["errors", "latency", "agreement"]
CAUSES: tuple[Cause, ...] = ("errors", "latency", "agreement")

ALPHA = 1e-3
"""Chance that a share which is within its limit is ever taken to be above it, however often it is looked at."""
SLOW_SHARE = 0.05
"""Share of texts that may be slow: the limit of slowness is one of the 95th percentile."""
_ALTERNATIVES = 40


@dataclass(frozen=True, slots=True)
class Rate:
    """*failures* of *total*."""

    failures: int = 0
    total: int = 0

    def __add__(self, failed: bool) -> Rate:
        return Rate(self.failures + failed, self.total + 1)


@dataclass(frozen=True, slots=True)
class SwapStats:
    """Count what was seen of a checkpoint: its passes, and the texts that another one has answered, too."""

    passes: Rate = Rate()
    """Those that failed, of the live ones."""
    texts: Rate = Rate()
    """Those that only this one could not answer, or not with numbers."""
    slow: Rate = Rate()
    """Those for which it took too many times as long as the other one."""
    differing: Mapping[HeadName, Rate] = field(default_factory=lambda: dict.fromkeys(HEADS, Rate()))
    """Those that the head answers differently, of those that could be compared."""

    def agreement(self, head: HeadName) -> float | None:
        """Return the share of texts that a head answers as the other checkpoint does; None if none was compared."""
        seen = self.differing[head]
        return 1 - seen.failures / seen.total if seen.total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Say what is still good."""

    min_samples: int
    """Nothing is decided by fewer."""
    errors: float
    slowdown: float
    agreement: float
    adapted_agreement: float


@dataclass(frozen=True, slots=True)
class Regression:
    """Why a checkpoint is bad, as one sentence without its end."""

    cause: Cause
    message: str


def exceeds_limit(seen: Rate, limit: float, alpha: float = ALPHA) -> bool:
    """Tell whether more than a share *limit* of all is bad, as far as these show.

    It may be asked again after each new one: if the share is within the limit, the chance that this is ever true is at
    most *alpha*. The likelihood ratio of a mixture of shares above the limit against the limit is a nonnegative
    supermartingale then, which exceeds 1/alpha at any time with that chance only (Ville 1939; Robbins 1970).
    """
    if limit >= 1 or not seen.failures:
        return False
    if limit <= 0:
        return True
    good = seen.total - seen.failures
    # Denser near the limit, where more are needed to tell.
    shares = [limit + (1 - limit) * (step / _ALTERNATIVES) ** 2 for step in range(1, _ALTERNATIVES + 1)]
    ratios = [
        seen.failures * math.log(share / limit) + (good * math.log((1 - share) / (1 - limit)) if good else 0.0)
        for share in shares
        if share < 1 or not good
    ]
    top = max(ratios)
    mixture = top + math.log(sum(math.exp(ratio - top) for ratio in ratios) / _ALTERNATIVES)
    return mixture >= -math.log(alpha)


def find_regression(stats: SwapStats, limits: Limits, adapted: HeadName | None) -> Regression | None:
    """Return why the checkpoint is bad, or None where that is not proven. *adapted* is the head that was to change."""
    return next(_regressions(stats, limits, adapted), None)


def reject_reason(stats: SwapStats, limits: Limits, adapted: HeadName | None) -> Regression | None:
    """Return why a candidate that was compared is not made live, or None.

    Before it is live, the proof is the candidate's to give: a head that was seen to agree too little refuses it, proven
    or not, unless fewer texts were compared than decide anything.
    """
    if regression := find_regression(stats, limits, adapted):
        return regression
    for head in HEADS:
        seen, minimum = stats.differing[head], _min_agreement(limits, head, adapted)
        if seen.total >= limits.min_samples and seen.total - seen.failures < minimum * seen.total:
            return _disagreement(head, seen, minimum)
    return None


def _regressions(stats: SwapStats, limits: Limits, adapted: HeadName | None) -> Iterator[Regression]:
    for seen, what in ((stats.passes, "passes"), (stats.texts, "texts")):
        if seen.total >= limits.min_samples and exceeds_limit(seen, limits.errors):
            yield Regression("errors", f"{seen.failures} of {seen.total} {what} failed, and {limits.errors:.1%} may")
    if stats.slow.total >= limits.min_samples and exceeds_limit(stats.slow, SLOW_SHARE):
        message = f"{stats.slow.failures} of {stats.slow.total} texts took more than {limits.slowdown:g} times as long"
        yield Regression("latency", f"{message}, and {SLOW_SHARE:.0%} may")
    for head in HEADS:
        seen = stats.differing[head]
        minimum = _min_agreement(limits, head, adapted)
        if seen.total >= limits.min_samples and exceeds_limit(seen, 1 - minimum):
            yield _disagreement(head, seen, minimum)


def _min_agreement(limits: Limits, head: HeadName, adapted: HeadName | None) -> float:
    """Return the least agreement of a head. The one that was to change, or might have been, has the wide limit."""
    return limits.adapted_agreement if adapted in {head, None} else limits.agreement


def _disagreement(head: HeadName, seen: Rate, minimum: float) -> Regression:
    message = f"the {head} head agrees on {seen.total - seen.failures} of {seen.total} texts"
    return Regression("agreement", f"{message}, and {minimum:.0%} is the least")

"""May the candidate serve? A pure decision on scores before and after."""

from __future__ import annotations

from dataclasses import dataclass

from twofold_checkpoint.events import VerdictName

from twofold_trainer.metrics import HeadScore


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold one figure of the base and of the candidate on the same examples, in the same order."""

    before: HeadScore | None
    after: HeadScore | None

    @property
    def points(self) -> float | None:
        """The gain in points (0.01 of a score); None where there was nothing to measure."""
        if self.before is None or self.after is None:
            return None
        return 100 * (self.after.value - self.before.value)

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return "not measured"
        return f"{100 * self.before.value:.1f} -> {100 * self.after.value:.1f} on {self.after.examples} examples"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say whether the candidate may serve, and why, in one sentence with numbers."""

    verdict: VerdictName
    reason: str


def judge(*, protected: Pair, retained: Pair, new: Pair, margin: float, trained: bool = True) -> Verdict:
    """Judge a candidate. *margin* is in points that the protected score may fall; *trained* says that a stage was kept.

    Rounding is not a fall: a difference below a millionth of a point counts as none.
    """
    slack = 1e-6
    figures = f"protected {protected}, retained {retained}, new {new}"
    if not trained:
        return Verdict("fail", f"no stage of the training was kept: {figures}")
    if new.points is None:
        return Verdict("inconclusive", f"there are no held-out examples of the new data to judge by: {figures}")
    if protected.points is not None and protected.points < -margin - slack:
        fallen = f"the protected score fell by {-protected.points:.1f} points, more than the margin of {margin:g}"
        return Verdict("fail", f"{fallen}: {figures}")
    if new.points < -slack:
        return Verdict("fail", f"the new data's score fell by {-new.points:.1f} points: {figures}")
    kept = "nothing of the protected task could be measured" if protected.points is None else "the margin holds"
    return Verdict("pass", f"{kept}: {figures}")

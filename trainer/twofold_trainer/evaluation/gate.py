"""The gate: decide whether the candidate may serve, from scores on held-out examples before and after training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from twofold_checkpoint.protocol.events import VerdictName

from twofold_trainer.scoring.noninferiority import Bounds, needed_examples, paired_accuracy, paired_f1
from twofold_trainer.scoring.scores import HeadScore, SpanCounts

Against = Literal["base", "approved"]
SLACK = 1e-9
"""Tolerance for rounding errors."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A score of the base and of the candidate on the same examples, in the same order."""

    before: HeadScore | None
    after: HeadScore | None

    @property
    def points(self) -> float | None:
        """The gain in points (0.01 of a score); None if it was not measured."""
        if self.before is None or self.after is None:
            return None
        return 100 * (self.after.value - self.before.value)

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return "not measured"
        return f"{100 * self.before.value:.1f} -> {100 * self.after.value:.1f} on {self.after.examples} examples"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The evidence for the protected task: scores and bounds from 0 to 1, and the number of changed answers."""

    against: Against
    before: float
    after: float
    bounds: Bounds
    examples: int
    gained: int
    lost: int
    needed_examples: int | None
    """The number of examples needed for a decision, if these are too few."""
    calibration: tuple[float | None, float | None] = (None, None)
    """Expected calibration error before and after. It is reported but does not affect the verdict."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether the candidate may serve, and the reason in one sentence with numbers."""

    verdict: VerdictName
    reason: str
    comparisons: tuple[Comparison, ...] = ()
    negative_flips: tuple[int, ...] = ()
    """Indices of the protected examples that the base answered better."""


def evaluate_gate(
    *,
    protected: Pair,
    retained: Pair,
    new: Pair,
    margin: float,
    retained_margin: float | None,
    approved: Pair | None = None,
    exact: bool = False,
    trained: bool = True,
    seed: int = 0,
) -> GateResult:
    """Decide whether a candidate may serve. *margin* and *retained_margin* are the points that the two scores may fall.

    The protected score must be proven non-inferior, by paired_accuracy or paired_f1, to that of the base and of *approved*,
    the checkpoint that a person last approved, so that small losses do not add up. *exact* means that the protected path
    is byte-identical; its answers are then compared one by one. *trained*: whether a training stage was kept.
    """
    figures = f"protected {protected}, retained {retained}, new {new}"
    flips = tuple(changed(protected, better=False))
    pairs: list[tuple[Pair | None, Against]] = [(protected, "base"), (approved, "approved")]
    comparisons = tuple(
        compare(pair, against, margin, seed=seed)
        for pair, against in pairs
        if pair is not None and pair.points is not None
    )

    def result(verdict: VerdictName, why: str) -> GateResult:
        return GateResult(verdict, f"{why}: {figures}", comparisons, flips)

    if not trained:
        return result("fail", "no training stage was kept")
    if new.points is None:
        return result("inconclusive", "there are no held-out examples of the new data")
    if exact and protected.before != protected.after:
        return result("fail", "the protected path is byte-identical, but its answers differ. This is a bug")
    if not exact and not comparisons:
        return result("inconclusive", "there are no held-out examples of the protected task")
    verdict: VerdictName = "pass"
    why = "the protected path is byte-identical"
    if not exact:
        verdict, why = _worst(comparisons, margin)
    if verdict != "pass":
        return result(verdict, why)
    if retained_margin is not None and (retained.points or 0.0) < -retained_margin - SLACK:
        fallen = f"the old labels' score fell by {-(retained.points or 0.0):.1f} points"
        return result("fail", f"{fallen}, more than the margin of {retained_margin:g}")
    if new.points < -SLACK:
        return result("fail", f"the new data's score fell by {-new.points:.1f} points")
    return result("pass", why)


def compare(pair: Pair, against: Against, margin: float, *, seed: int = 0) -> Comparison:
    """Compare the protected task before and after. Raises AssertionError if there is nothing to compare."""
    before, after = pair.before, pair.after
    assert before is not None, "Nothing was measured before. This is a bug."
    assert after is not None, "Nothing was measured after. This is a bug."
    n = after.examples
    gained, lost = (sum(1 for _ in changed(pair, better=better)) for better in (True, False))
    if after.head == "classifier":
        bounds = paired_accuracy(gained, lost, n)
    else:
        bounds = paired_f1(_spans(before), _spans(after), seed=seed)
    room = (
        margin / 100 + min(0.0, bounds.difference)
    ) / bounds.weight  # The part of the margin that the observed loss leaves.
    undecided = bounds.lower <= -margin / 100 and SLACK < room < 1
    needed = max(n + 1, needed_examples((gained + lost) / n, room)) if undecided else None
    calibration = before.calibration_error, after.calibration_error
    return Comparison(against, before.value, after.value, bounds, n, gained, lost, needed, calibration)


def _worst(comparisons: Iterable[Comparison], margin: float) -> tuple[VerdictName, str]:
    """Return the worst verdict of all comparisons."""
    results: list[tuple[VerdictName, str]] = []
    for comparison in comparisons:
        than = "" if comparison.against == "base" else " since a person last approved a checkpoint"
        lower, fallen = 100 * comparison.bounds.lower, -100 * comparison.bounds.difference
        if fallen > 0 and fallen >= margin - 100 * SLACK:
            beyond = "more than" if fallen > margin + 100 * SLACK else "as much as"
            results.append(
                ("fail", f"the protected score fell by {fallen:.1f} points{than}, {beyond} the margin of {margin:g}")
            )
        elif lower > -margin:
            change = f"fell by less than {-lower:.2f} points" if lower < 0 else "did not fall"
            results.append(("pass", f"the protected score {change}{than} (95 % confidence)"))
        else:
            more = "" if comparison.needed_examples is None else f"; about {comparison.needed_examples} would be enough"
            why = f"{comparison.examples} examples cannot exclude a drop of {-lower:.2f} points{than}, more than the margin of {margin:g}"
            results.append(("inconclusive", f"{why}{more}"))
    order: tuple[VerdictName, ...] = ("fail", "inconclusive", "pass")
    return min(results, key=lambda result: order.index(result[0]))


def changed(pair: Pair, *, better: bool) -> Iterable[int]:
    """Yield the indices of the examples that are answered better, or worse, than before.

    Spans are worse if fewer are right, or if equally many are right and more are wrong.
    """
    if pair.before is None or pair.after is None:
        return
    outcomes: Iterable[tuple[int | SpanCounts, int | SpanCounts]] = zip(
        pair.before.outcomes, pair.after.outcomes, strict=True
    )
    for index, (old, new) in enumerate(outcomes):
        first, second = _quality(old), _quality(new)
        if (second > first) if better else (second < first):
            yield index


def _quality(outcome: int | SpanCounts) -> tuple[int, int]:
    return (outcome.right, outcome.right - outcome.predicted) if isinstance(outcome, SpanCounts) else (outcome, 0)


def _spans(score: HeadScore) -> list[SpanCounts]:
    return [outcome for outcome in score.outcomes if isinstance(outcome, SpanCounts)]

"""A cell's three figures: what was learned, what the protected task kept, and what the old labels kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.adaptation.runs import Cell, Change


@dataclass(frozen=True, slots=True)
class Summary:
    """Hold three figures in points (0 to 100). *retained* is None where the adapted head's names were replaced.

    A sequence counts as a whole. *new* is the mean over its steps of the score right after the step. *protected* goes
    from before the first step to after the last. *retained* is a mean, too: of the base's test set, before the first
    step and after the last, and of the test set of every step but the last, right after that step and after the last.
    """

    new: float
    protected: Change
    retained: Change | None
    negative_flips: float

    @property
    def figures(self) -> tuple[float, ...]:
        """The scores at the end: new, protected and, if there is one, retained."""
        kept = () if self.retained is None else (self.retained.after,)
        return (self.new, self.protected.after, *kept)


def summarise(cell: Cell) -> Summary | None:
    """Sum a cell up; None for one without scores."""
    if not cell.steps:
        return None
    first, last = cell.steps[0], cell.steps[-1]
    retained = None
    if first.retained is not None and last.retained is not None:
        before = [first.retained.before, *(step.new.after for step in cell.steps[:-1])]
        after = [last.retained.after, *(last.earlier[step.name] for step in cell.steps[:-1])]
        retained = Change(before=100 * mean(before), after=100 * mean(after))
    return Summary(
        new=100 * mean([step.new.after for step in cell.steps]),
        protected=Change(before=100 * first.protected.before, after=100 * last.protected.after),
        retained=retained,
        negative_flips=sum(step.negative_flips for step in cell.steps),
    )


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of some values."""
    return sum(values) / len(values)

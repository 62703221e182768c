"""The three scores of a run: what was learned, what the protected task kept, and what the old labels kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.adaptation.runs import Change, Run


@dataclass(frozen=True, slots=True)
class Summary:
    """Hold three scores in points (0 to 100). *retained* is None if the names of the adapted head were replaced.

    For a sequence of steps, *new* is the mean of the scores right after each step, and *protected* spans the first to the
    last step. *retained* is the mean over the base's test set, before the first and after the last step, and the test
    sets of all steps but the last, right after their step and after the last.
    """

    new: float
    protected: Change
    retained: Change | None
    negative_flips: float

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores at the end: new, protected and, if present, retained."""
        retained = () if self.retained is None else (self.retained.after,)
        return (self.new, self.protected.after, *retained)


def summarise(run: Run) -> Summary | None:
    """Summarise a run; return None if it has no scores."""
    if not run.steps:
        return None
    first, last = run.steps[0], run.steps[-1]
    retained = None
    if first.retained is not None and last.retained is not None:
        before = [first.retained.before, *(step.new.after for step in run.steps[:-1])]
        after = [last.retained.after, *(last.earlier[step.name] for step in run.steps[:-1])]
        retained = Change(before=100 * mean(before), after=100 * mean(after))
    return Summary(
        new=100 * mean([step.new.after for step in run.steps]),
        protected=Change(before=100 * first.protected.before, after=100 * last.protected.after),
        retained=retained,
        negative_flips=sum(step.negative_flips for step in run.steps),
    )


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)

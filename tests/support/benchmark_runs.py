"""Invented cells, from the scores that a test wants."""

from __future__ import annotations

from benchmarks.adaptation.runs import Cell, Change, StepScores

TINY_RATES = {"backbone": 3e-3, "head": 2e-2, "probe": 2e-2, "batch_size": 16, "ewc_weight": 1.0}
"""Rates at which a tiny model learns."""

Scores = tuple[float, float, float | None]
"""In points: new and protected after a step, and retained, None where it replaced the old names."""

BEFORE = 90.0
"""Points of the protected and the retained test set before the first step."""


def change(before: float, after: float) -> Change:
    """Make a change of points."""
    return Change(before=before / 100, after=after / 100)


def cell(scenario: str, row: str, *after: Scores, earlier: tuple[dict[str, float], ...] = (), **more) -> Cell:
    """Make a cell of one step or several; *earlier* holds for each the points of the steps before it."""
    steps, protected, retained = [], BEFORE, BEFORE
    for number, (new, kept, held) in enumerate(after):
        own = earlier[number] if earlier else {}
        steps.append(
            StepScores(
                name=f"step {number}",
                new=change(0.0, new),
                protected=change(protected, kept),
                retained=None if held is None else change(retained, held),
                earlier={name: value / 100 for name, value in own.items()},
                negative_flips=number + 1,
            )
        )
        protected, retained = kept, retained if held is None else held
    settings = {"size": "standard", "digest": "d", "settings": {}, "seconds": 10.0, "wall_seconds": 60.0, **more}
    return Cell(scenario=scenario, row=row, steps=tuple(steps), **settings)


SEQUENCE = ((80.0, 89.0, 88.0), (60.0, 87.0, 85.0), (70.0, 88.0, 86.0))
EARLIER = ({}, {"step 0": 75.0}, {"step 0": 70.0, "step 1": 50.0})

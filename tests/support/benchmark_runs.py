"""Benchmark runs from given scores."""

from __future__ import annotations

from benchmarks.adaptation.runs import Change, Run, StepScores

TINY_HYPERPARAMETERS = {
    "backbone_learning_rate": 3e-3,
    "head_learning_rate": 2e-2,
    "probe_learning_rate": 2e-2,
    "batch_size": 16,
    "ewc_weight": 1.0,
}
"""Hyperparameters with which a tiny model learns."""

Scores = tuple[float, float, float | None]
"""New, protected and retained scores after a step, in points; retained is None if the step replaced the old names."""

BEFORE = 90.0
"""The protected and the retained score before the first step, in points."""


def change(before: float, after: float) -> Change:
    """Return a change in points."""
    return Change(before=before / 100, after=after / 100)


def make_run(scenario: str, method: str, *after: Scores, earlier: tuple[dict[str, float], ...] = (), **fields) -> Run:
    """Return a run of one or more steps; *earlier* contains the scores of earlier steps after each step, in points."""
    steps, protected, retained = [], BEFORE, BEFORE
    for number, (new, protected_after, retained_after) in enumerate(after):
        steps.append(
            StepScores(
                name=f"step {number}",
                new=change(0.0, new),
                protected=change(protected, protected_after),
                retained=None if retained_after is None else change(retained, retained_after),
                earlier={name: value / 100 for name, value in (earlier[number] if earlier else {}).items()},
                negative_flips=number + 1,
            )
        )
        protected = protected_after
        retained = retained if retained_after is None else retained_after
    settings = {"size": "standard", "digest": "d", "settings": {}, "seconds": 10.0, "wall_seconds": 60.0, **fields}
    return Run(scenario=scenario, method=method, steps=tuple(steps), **settings)


SEQUENCE = ((80.0, 89.0, 88.0), (60.0, 87.0, 85.0), (70.0, 88.0, 86.0))
EARLIER = ({}, {"step 0": 75.0}, {"step 0": 70.0, "step 1": 50.0})

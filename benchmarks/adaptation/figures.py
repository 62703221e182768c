"""The named figures of the benchmark, from its cells. Pure functions; losses in points, ratios as shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.adaptation.averages import average
from benchmarks.adaptation.methods import CEILING, CLASSICS, OURS
from benchmarks.adaptation.runs import Cell
from benchmarks.adaptation.summary import Summary, mean, summarise

PROTECTING = ("statistical", "auto")
"""The rows that may lose something of the protected task, within a margin."""
DEFAULT_ROW = "auto"
"""The row that a user gets who chooses nothing: it is the one that is held against the classics' sum."""

Summaries = Mapping[tuple[str, str], Summary]
"""By scenario and row."""


@dataclass(frozen=True, slots=True)
class Dominated:
    """Name a row of ours that a classic row beats on every figure of a scenario."""

    scenario: str
    row: str
    by: str


def compute_figures(cells: Iterable[Cell]) -> dict[str, float]:
    """Return every figure for which there are cells.

    Where a scenario was run with several seeds, figures are of the means; what one run lost at most stands beside it, as
    `protected_loss_worst_run_*`, and what the worst of those lost that passed the gate, which are the ones that would serve,
    as `protected_loss_passed_*`. Exactness is asked of every run. `retained_loss_max` counts what earlier steps of a sequence
    taught, too, `retained_loss_max_base` the base's test set alone, which is what scenarios.json calls retained, and
    `retained_loss_max_step` the same for one adaptation at a time, as the protected losses are.
    """
    runs = [cell for cell in cells if cell.steps]
    cells = average(runs)
    summaries = {(cell.scenario, cell.row): found for cell in cells if (found := summarise(cell)) is not None}
    figures: dict[str, float | None] = {}
    for row in PROTECTING:
        figures[f"protected_loss_max_{row}"] = largest(protected_losses(cells, [row]))
        if len(runs) > len(cells):
            figures[f"protected_loss_worst_run_{row}"] = largest(protected_losses(runs, [row]))
        figures[f"protected_loss_passed_{row}"] = largest(protected_losses(runs, [row], passed=True))
    exact = [step for cell in runs if cell.row == "exact" for step in cell.steps]
    figures["protected_changed_exact"] = sum(step.changed for step in exact) if exact else None
    figures["protected_logit_diff_exact"] = largest(
        float(step.more["logit_diff"]) for step in exact if "logit_diff" in step.more
    )
    figures["retained_loss_max"] = largest(
        one.retained.loss for (_, row), one in summaries.items() if row in OURS and one.retained is not None
    )
    figures["retained_loss_max_base"] = largest(retained_losses(cells, OURS))
    figures["retained_loss_max_step"] = largest(retained_losses_of_steps(cells, OURS))
    ratios = {row: new_ratios(summaries, row) for row in OURS}
    for row in ("statistical", "auto", "exact"):
        figures[f"new_ratio_mean_{row}"] = mean(ratios[row]) if ratios[row] else None
    every = [ratio for row in OURS for ratio in ratios[row]]
    figures["new_ratio_min"] = min(every) if every else None
    if any(row in OURS for _, row in summaries) and any(row in CLASSICS for _, row in summaries):
        figures["dominated_scenarios"] = len({one.scenario for one in find_dominated(summaries)})
    figures["mean_sum_margin"] = sum_margin(summaries, DEFAULT_ROW)
    figures["sequence_loss_max"] = largest(
        summaries[cell.scenario, cell.row].protected.loss
        for cell in cells
        if cell.row in PROTECTING and len(cell.steps) > 1
    )
    # A difference of logits is a millionth, everything else is read to a hundredth.
    return {name: value if "logit" in name else round(value, 4) for name, value in figures.items() if value is not None}


def protected_losses(cells: Iterable[Cell], rows: Sequence[str], *, passed: bool = False) -> list[float]:
    """Return in points what each adaptation took from the protected task; every step of a sequence is one.

    With *passed*, only of those that the gate lets pass.
    """
    steps = [step for cell in cells if cell.row in rows for step in cell.steps]
    return [100 * step.protected.loss for step in steps if not passed or step.verdict == "pass"]


def retained_losses(cells: Iterable[Cell], rows: Sequence[str]) -> Iterator[float]:
    """Yield in points what the base's own labels lost from before the first step to after the last, where they are kept."""
    for cell in cells:
        first, last = cell.steps[0].retained, cell.steps[-1].retained
        if cell.row in rows and first is not None and last is not None:
            yield 100 * (first.before - last.after)


def retained_losses_of_steps(cells: Iterable[Cell], rows: Sequence[str]) -> Iterator[float]:
    """Yield in points what each adaptation took from the base's own labels, where they are kept."""
    for cell in cells:
        if cell.row in rows:
            yield from (100 * step.retained.loss for step in cell.steps if step.retained is not None)


def new_ratios(summaries: Summaries, row: str) -> list[float]:
    """Return for each scenario a row's new score over that of unconstrained fine-tuning."""
    return [
        one.new / ceiling.new
        for (scenario, name), one in summaries.items()
        if name == row and (ceiling := summaries.get((scenario, CEILING))) is not None and ceiling.new
    ]


def find_dominated(summaries: Summaries) -> list[Dominated]:
    """Find every row of ours to which a classic is better on all figures of a scenario at once."""
    found = []
    for (scenario, row), one in summaries.items():
        if row not in OURS:
            continue
        for classic in CLASSICS:
            rival = summaries.get((scenario, classic))
            if rival is not None and all(theirs > own for theirs, own in zip(rival.figures, one.figures, strict=True)):
                found.append(Dominated(scenario, row, classic))
    return found


def sum_margin(summaries: Summaries, row: str) -> float | None:
    """Return by how many points a row's mean of summed figures is above that of the best classic row.

    Rows need not be run on every scenario: each classic is compared on those that it shares with the row.
    """
    margins = []
    for classic in CLASSICS:
        shared = [scenario for scenario, name in summaries if name == classic and (scenario, row) in summaries]
        if shared:
            ours, theirs = (
                mean([sum(summaries[scenario, name].figures) for scenario in shared]) for name in (row, classic)
            )
            margins.append(ours - theirs)
    return min(margins) if margins else None


def largest(values: Iterable[float]) -> float | None:
    """Return the largest value; None if there is none."""
    return max(values, default=None)

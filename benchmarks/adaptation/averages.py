"""What several runs of one scenario under one row come to: one cell that holds their means."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from benchmarks.adaptation.runs import Cell, Change, StepScores
from benchmarks.adaptation.summary import mean, summarise


def average(cells: Iterable[Cell]) -> list[Cell]:
    """Put the mean of all runs that have scores in the place of the runs of each scenario and row.

    Seeds decide by chance alone, so what is compared are means. Where no run has scores, the first one says why. *changed*
    is added up, as one changed answer is one too many.
    """
    runs: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        runs.setdefault((cell.scenario, cell.row), []).append(cell)
    return [_average(some) for some in runs.values()]


def spreads(cells: Iterable[Cell]) -> dict[tuple[str, str], float]:
    """Return for each scenario and row that was run more than once the standard deviation of its sum of figures, in points."""
    sums: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if (one := summarise(cell)) is not None:
            sums.setdefault((cell.scenario, cell.row), []).append(sum(one.figures))
    return {key: statistics.stdev(some) for key, some in sums.items() if len(some) > 1}


def _average(runs: Sequence[Cell]) -> Cell:
    scored = [cell for cell in runs if cell.steps]
    if len(scored) < 2:
        return (scored or runs)[0]
    return msgspec.structs.replace(
        scored[0],
        steps=tuple(_step(steps) for steps in zip(*(cell.steps for cell in scored), strict=True)),
        verdict=", ".join(dict.fromkeys(cell.verdict for cell in scored if cell.verdict)) or None,
        seconds=mean([cell.seconds for cell in scored]),
        cpu_seconds=mean([cell.cpu_seconds for cell in scored]),
        peak_memory_mib=max(cell.peak_memory_mib for cell in scored),
        wall_seconds=mean([cell.wall_seconds for cell in scored]),
    )


def _step(runs: Sequence[StepScores]) -> StepScores:
    first = runs[0]
    retained = [one.retained for one in runs if one.retained is not None]
    return msgspec.structs.replace(
        first,
        new=_change([one.new for one in runs]),
        protected=_change([one.protected for one in runs]),
        retained=_change(retained) if retained else None,
        earlier={name: mean([one.earlier[name] for one in runs]) for name in first.earlier},
        negative_flips=mean([one.negative_flips for one in runs]),
        positive_flips=mean([one.positive_flips for one in runs]),
        changed=sum(one.changed for one in runs),
        strict={name: _change([one.strict[name] for one in runs]) for name in first.strict},
        seconds=mean([one.seconds for one in runs]),
        cpu_seconds=mean([one.cpu_seconds for one in runs]),
    )


def _change(changes: Sequence[Change]) -> Change:
    return Change(before=mean([one.before for one in changes]), after=mean([one.after for one in changes]))

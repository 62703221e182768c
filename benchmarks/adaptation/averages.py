"""Average the runs of a scenario and method over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from benchmarks.adaptation.runs import Change, Run, StepScores
from benchmarks.adaptation.summary import mean, summarise


def average(runs: Iterable[Run]) -> list[Run]:
    """Return one run per scenario and method, with the means over its seeds.

    If no seed has scores, the first run stands for all and gives the reason. *changed* is summed, not averaged: a single
    changed answer breaks exactness.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.scenario, run.method), []).append(run)
    return [_average(group) for group in groups.values()]


def spreads(runs: Iterable[Run]) -> dict[tuple[str, str], float]:
    """Return the standard deviation over seeds of the sum of scores, in points, where there are several seeds."""
    sums: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if (summary := summarise(run)) is not None:
            sums.setdefault((run.scenario, run.method), []).append(sum(summary.scores))
    return {key: statistics.stdev(values) for key, values in sums.items() if len(values) > 1}


def _average(runs: Sequence[Run]) -> Run:
    scored = [run for run in runs if run.steps]
    if len(scored) < 2:
        return (scored or runs)[0]
    return msgspec.structs.replace(
        scored[0],
        steps=tuple(_average_steps(steps) for steps in zip(*(run.steps for run in scored), strict=True)),
        verdict=", ".join(dict.fromkeys(run.verdict for run in scored if run.verdict)) or None,
        seconds=mean([run.seconds for run in scored]),
        cpu_seconds=mean([run.cpu_seconds for run in scored]),
        peak_memory_mib=max(run.peak_memory_mib for run in scored),
        wall_seconds=mean([run.wall_seconds for run in scored]),
    )


def _average_steps(steps: Sequence[StepScores]) -> StepScores:
    first = steps[0]
    retained = [step.retained for step in steps if step.retained is not None]
    return msgspec.structs.replace(
        first,
        new=_average_changes([step.new for step in steps]),
        protected=_average_changes([step.protected for step in steps]),
        retained=_average_changes(retained) if retained else None,
        earlier={name: mean([step.earlier[name] for step in steps]) for name in first.earlier},
        negative_flips=mean([step.negative_flips for step in steps]),
        positive_flips=mean([step.positive_flips for step in steps]),
        changed=sum(step.changed for step in steps),
        strict={name: _average_changes([step.strict[name] for step in steps]) for name in first.strict},
        seconds=mean([step.seconds for step in steps]),
        cpu_seconds=mean([step.cpu_seconds for step in steps]),
    )


def _average_changes(changes: Sequence[Change]) -> Change:
    return Change(before=mean([change.before for change in changes]), after=mean([change.after for change in changes]))

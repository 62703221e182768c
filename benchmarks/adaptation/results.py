"""The results file: every run, the figures computed from the runs, and the runs still missing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from benchmarks import report
from benchmarks.adaptation.averages import average, spreads
from benchmarks.adaptation.figures import compute_figures, find_dominated
from benchmarks.adaptation.runs import Run
from benchmarks.adaptation.summary import summarise

Key = tuple[str, str, int]
"""A scenario, a method and a seed."""


def name_results(size: str) -> str:
    """Return the name of the results file; only the standard size has the plain name."""
    return "adapt" if size == "standard" else f"adapt-{size}"


def read_runs(name: str) -> dict[Key, Run]:
    """Read the runs so far; return nothing if there is no file."""
    path = report.RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    runs = msgspec.convert([*result["outdated"], *result["runs"]], list[Run])
    return {(run.scenario, run.method, run.seed): run for run in runs}


def write_runs(
    name: str, runs: Mapping[Key, Run], wanted: Mapping[Key, str], settings: Mapping[str, Any], *, quiet: bool = False
) -> None:
    """Write the file. *wanted* maps each run of the benchmark to the digest of its settings.

    Runs with other settings do not count, but the file keeps them until they are measured again.
    """
    current = select_current(runs, wanted)
    outdated = [run for run in runs.values() if run not in current]
    summaries = {
        (run.scenario, run.method): summary for run in average(current) if (summary := summarise(run)) is not None
    }
    measured = {(run.scenario, run.method, run.seed) for run in current if run.steps}
    report.write(
        name,
        settings=settings,
        figures=compute_figures(current),
        quiet=quiet,
        missing=["/".join(map(str, key)) for key in wanted if key not in measured],
        mixed_bases=find_mixed_bases(current),
        spreads={"/".join(key): round(value, 2) for key, value in spreads(current).items()},
        dominated=[dataclasses.asdict(entry) for entry in find_dominated(summaries)],
        runs=msgspec.to_builtins(current),
        outdated=msgspec.to_builtins(outdated),
    )


def find_mixed_bases(runs: Iterable[Run]) -> list[str]:
    """Return the scenarios whose runs started from different base weights, which can shift scores by a point."""
    weights: dict[str, set[str]] = {}
    for run in runs:
        if run.steps:
            weights.setdefault(run.scenario, set()).add(run.base_weights)
    return [scenario for scenario, digests in weights.items() if len(digests) > 1]


def select_current(runs: Mapping[Key, Run], wanted: Mapping[Key, str]) -> list[Run]:
    """Return the runs with the wanted settings, in the wanted order."""
    return [runs[key] for key, digest in wanted.items() if key in runs and runs[key].digest == digest]


def select_pending(runs: Mapping[Key, Run], wanted: Mapping[Key, str], chosen: Iterable[Key]) -> list[Key]:
    """Return the chosen runs that are still to be measured, including those that failed."""
    completed = {(run.scenario, run.method, run.seed) for run in select_current(runs, wanted) if run.error is None}
    return [key for key in chosen if key not in completed]

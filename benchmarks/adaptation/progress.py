"""Estimate the time that the remaining runs will take from the runs so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.adaptation.runs import Run
from benchmarks.adaptation.summary import mean


def remaining_seconds(completed: Sequence[Run], pending: Iterable[tuple[str, str, int]]) -> float | None:
    """Estimate the time of pending (scenario, method, seed) triples; return None without completed runs.

    A run is assumed to take the mean time of its scenario, else of its method, else of all runs.
    """
    timed = [run for run in completed if run.error is None]
    if not timed:
        return None

    def estimate(scenario: str, method: str) -> float:
        of_scenario = [run for run in timed if run.scenario == scenario]
        similar = of_scenario or [run for run in timed if run.method == method] or timed
        return mean([run.wall_seconds for run in similar])

    return sum(estimate(scenario, method) for scenario, method, _ in pending)


def format_duration(seconds: float) -> str:
    """Return a duration in minutes, or in hours and minutes."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

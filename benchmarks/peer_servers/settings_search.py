"""Find a peer's fastest settings by short trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.peer_servers.catalog import Axis


def search(
    axes: Sequence[Axis], measure: Callable[[Mapping[str, Any]], float]
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], float]]]:
    """Return the settings with the highest rate, and all trials with their rates.

    The axes are searched one after another, each with the best settings so far; no settings are tried twice.
    """
    best = {name: value for axis in axes for name, value in axis[0].items()}
    trials = [(best, measure(best))]
    for axis in axes:
        names = {name for choice in axis for name in choice}
        # Choices of an axis may name different settings; unnamed ones stay at their defaults.
        fixed = {name: value for name, value in max(trials, key=lambda trial: trial[1])[0].items() if name not in names}
        for choice in axis:
            settings = {**fixed, **choice}
            if settings not in [trial for trial, _ in trials]:
                trials.append((settings, measure(settings)))
    return max(trials, key=lambda trial: trial[1])[0], trials

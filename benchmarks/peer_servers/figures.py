"""The figures of the comparison: each peer's medians, and Twofold's ratios to the best peer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Round = Mapping[str, Mapping[str, Mapping[str, float]]]
"""For each text set, the measurements of "twofold" and "peer" in one round."""

COMPARED = ("per_second", "cpu_ms", "p99_ms", "p99_equal_ms")
"""The compared measurements."""


def summarise(rounds: Sequence[Round]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for each text set, the medians of both servers and of their ratio within a round."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name in rounds[0]:
        measured = [entry[name] for entry in rounds]
        summary[name] = {
            side: {key: _median(measured, lambda entry, key=key, side=side: entry[side][key]) for key in keys}
            for side, keys in measured[0].items()
        }
        summary[name]["ratio"] = {
            key: _median(measured, lambda entry, key=key: entry["twofold"][key] / entry["peer"][key])
            for key in COMPARED
        }
    return summary


def compute_figures(peers: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> dict[str, float]:
    """Return the figures from the summaries of all peers.

    The best peer is the one with Twofold's worst ratio: the smallest for throughput, the largest for latency. Ratios within
    a round are more reliable than absolute figures from different minutes. Each figure is that of the text set with the worse
    ratio. Latencies are measured at half of each server's own capacity, which is less for a slower server, and, at equal
    load, at half of the peer's capacity.
    """

    def ratios(key: str) -> list[float]:
        return [texts["ratio"][key] for summary in peers.values() for texts in summary.values()]

    figures = {
        "throughput_over_best_peer": min(ratios("per_second")),
        "p99_over_best_peer": max(ratios("p99_ms")),
        "p99_at_equal_load_over_best_peer": max(ratios("p99_equal_ms")),
        "cpu_over_best_peer": max(ratios("cpu_ms")),
    }
    for name, summary in peers.items():
        for texts, sides in summary.items():
            for key in COMPARED:
                figures[f"{name}_{texts}_{key}"] = sides["peer"][key]
    return figures


def _median(rounds: Sequence[Any], read: Callable[[Any], float]) -> float:
    return round(statistics.median(map(read, rounds)), 3)

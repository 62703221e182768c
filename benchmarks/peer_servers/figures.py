"""What the rounds of all peers say: each peer's own figures, and Twofold's beside the best of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Round = Mapping[str, Mapping[str, Mapping[str, float]]]
"""For each text set, what "twofold" and "peer" did one after the other."""

COMPARED = ("per_second", "cpu_ms", "p99_ms", "p99_equal_ms")
"""What each peer is told by, and Twofold in relation to it."""


def summarise(rounds: Sequence[Round]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for each text set, the medians of both sides and of Twofold's ratio to the neighbour in its round."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in rounds[0]:
        own = [one[name] for one in rounds]
        found[name] = {
            side: {key: _median(own, lambda one, key=key, side=side: one[side][key]) for key in keys}
            for side, keys in own[0].items()
        }
        found[name]["ratio"] = {
            key: _median(own, lambda one, key=key: one["twofold"][key] / one["peer"][key]) for key in COMPARED
        }
    return found


def figures(peers: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> dict[str, float]:
    """Return the figures of the summaries of all peers.

    The best peer of a text set is the one to which Twofold's ratio is the worst: the smallest of throughput, the largest of
    latency. Each ratio is one of neighbours in time, which compares better than two absolute figures of different minutes.
    A figure is that of the text set on which Twofold does worse. Latencies are those at half of each server's own capacity,
    which is less for a slower server, and, at equal load, at half of the peer's.
    """

    def ratios(key: str) -> list[float]:
        return [texts["ratio"][key] for summary in peers.values() for texts in summary.values()]

    found = {
        "throughput_over_best_peer": min(ratios("per_second")),
        "p99_over_best_peer": max(ratios("p99_ms")),
        "p99_at_equal_load_over_best_peer": max(ratios("p99_equal_ms")),
        "cpu_over_best_peer": max(ratios("cpu_ms")),
    }
    for name, summary in peers.items():
        for texts, sides in summary.items():
            for key in COMPARED:
                found[f"{name}_{texts}_{key}"] = sides["peer"][key]
    return found


def _median(rounds: Sequence[Any], read: Callable[[Any], float]) -> float:
    return round(statistics.median(read(one) for one in rounds), 3)

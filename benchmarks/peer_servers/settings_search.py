"""Find the settings that suit a peer best, by short trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.peer_servers.catalog import Axis


def search(
    axes: Sequence[Axis], measure: Callable[[Mapping[str, Any]], float]
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], float]]]:
    """Return the settings with the highest rate, and all that were tried with their rates.

    One axis after the other is tried, with what was best of those before it; nothing is tried twice.
    """
    best = {name: value for axis in axes for name, value in axis[0].items()}
    tried = [(best, measure(best))]
    for axis in axes:
        own = {name for choice in axis for name in choice}
        # Choices of an axis may name different settings: what one does not name, it leaves at its default.
        rest = {name: value for name, value in max(tried, key=lambda one: one[1])[0].items() if name not in own}
        for choice in axis:
            settings = {**rest, **choice}
            if all(settings != one for one, _ in tried):
                tried.append((settings, measure(settings)))
    return max(tried, key=lambda one: one[1])[0], tried

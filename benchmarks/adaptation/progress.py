"""How long the cells that are left will take, guessed from those that are done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.adaptation.runs import Cell
from benchmarks.adaptation.summary import mean


def remaining_seconds(done: Sequence[Cell], left: Iterable[tuple[str, str, int]]) -> float | None:
    """Guess the time for the (scenario, row, seed) triples that are left; None while nothing is known.

    A cell takes about as long as others of its scenario, or of its row, or as any: the first of these that is known.
    """
    timed = [cell for cell in done if cell.error is None]
    if not timed:
        return None

    def guess(scenario: str, row: str) -> float:
        own = [cell for cell in timed if cell.scenario == scenario]
        same = own or [cell for cell in timed if cell.row == row] or timed
        return mean([cell.wall_seconds for cell in same])

    return sum(guess(scenario, row) for scenario, row, _ in left)


def spell(seconds: float) -> str:
    """Write a time as a person says it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

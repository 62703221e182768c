"""The results file: every cell, the figures that come of them, and what is still missing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from benchmarks import report
from benchmarks.adaptation.averages import average, spreads
from benchmarks.adaptation.figures import compute_figures, find_dominated
from benchmarks.adaptation.runs import Cell
from benchmarks.adaptation.summary import summarise

Key = tuple[str, str, int]
"""A scenario, a row and a seed."""


def name_results(size: str) -> str:
    """Return the results file's name; only the standard size has the plain one."""
    return "adapt" if size == "standard" else f"adapt-{size}"


def read_cells(name: str) -> dict[Key, Cell]:
    """Read what was measured before; nothing if there is no file."""
    path = report.RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    written = json.loads(path.read_text(encoding="utf-8"))
    cells = msgspec.convert([*written["outdated"], *written["cells"]], list[Cell])
    return {(cell.scenario, cell.row, cell.seed): cell for cell in cells}


def write_cells(
    name: str, cells: Mapping[Key, Cell], wanted: Mapping[Key, str], settings: Mapping[str, Any], *, quiet: bool = False
) -> None:
    """Write the file anew. *wanted* says which cells belong to it, with the digest that each must have.

    Cells that were measured under other settings count for nothing, but are kept until they are measured again.
    """
    current = select_current(cells, wanted)
    outdated = [cell for key, cell in cells.items() if cell not in current]
    averaged = average(current)
    summaries = {(cell.scenario, cell.row): one for cell in averaged if (one := summarise(cell)) is not None}
    measured = {(cell.scenario, cell.row, cell.seed) for cell in current if cell.steps}
    report.write(
        name,
        settings=settings,
        figures=compute_figures(current),
        quiet=quiet,
        missing=["/".join(map(str, key)) for key in wanted if key not in measured],
        mixed_bases=find_mixed_bases(current),
        spreads={"/".join(key): round(value, 2) for key, value in spreads(current).items()},
        dominated=[dataclasses.asdict(one) for one in find_dominated(summaries)],
        cells=msgspec.to_builtins(current),
        outdated=msgspec.to_builtins(outdated),
    )


def find_mixed_bases(cells: Iterable[Cell]) -> list[str]:
    """Name the scenarios whose rows did not all start from the same weights: a point between them may be the base's."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        if cell.steps:
            found.setdefault(cell.scenario, set()).add(cell.base_weights)
    return [scenario for scenario, weights in found.items() if len(weights) > 1]


def select_current(cells: Mapping[Key, Cell], wanted: Mapping[Key, str]) -> list[Cell]:
    """Return the cells that were measured under the wanted settings, in the wanted order."""
    return [cells[key] for key, digest in wanted.items() if key in cells and cells[key].digest == digest]


def select_left(cells: Mapping[Key, Cell], wanted: Mapping[Key, str], chosen: Iterable[Key]) -> list[Key]:
    """Return the chosen cells that have to be measured. One that failed is tried again."""
    done = {(cell.scenario, cell.row, cell.seed) for cell in select_current(cells, wanted) if cell.error is None}
    return [key for key in chosen if key not in done]

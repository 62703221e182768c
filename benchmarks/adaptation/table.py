"""The cells as tables in Markdown, for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.adaptation.averages import average, spreads
from benchmarks.adaptation.methods import ROWS
from benchmarks.adaptation.runs import Cell, Change
from benchmarks.adaptation.summary import Summary, mean, summarise

HEADER = ("row", "new", "protected", "retained", "negative flips", "verdict", "seconds", "peak MiB")
MEANS_HEADER = ("row", "scenarios", "new", "protected loss", "largest", "retained loss", "sum", "of one run", "seconds")


def make_tables(cells: Iterable[Cell], scenarios: Sequence[str]) -> str:
    """Return a table for each scenario that has cells, in the given order, and one of the rows' means."""
    runs = list(cells)
    given, chance = average(runs), spreads(runs)
    parts = []
    for scenario in scenarios:
        own = sorted((cell for cell in given if cell.scenario == scenario), key=lambda cell: ROWS.index(cell.row))
        if own:
            parts.append(f"### {scenario}\n\n{_table(HEADER, map(_line, own))}")
    means = [line for row in ROWS if (line := _means(row, [cell for cell in given if cell.row == row], chance))]
    if means:
        parts.append(f"### means over scenarios\n\n{_table(MEANS_HEADER, means)}")
    return "\n".join(parts)


def make_overview(cells: Iterable[Cell], scenarios: Sequence[str], rows: Sequence[str]) -> str:
    """Return one table: a line for each scenario, and for each row what is new, and what the protected task and old labels gained.

    A missing cell is a dash, and so is what old labels keep where they were replaced.
    """
    found = {(cell.scenario, cell.row): one for cell in average(cells) if (one := summarise(cell)) is not None}
    return _table(
        ("scenario", *rows),
        [(scenario, *(_brief(found.get((scenario, row))) for row in rows)) for scenario in scenarios],
    )


def _brief(one: Summary | None) -> str:
    if one is None:
        return "-"
    kept = "-" if one.retained is None else _signed(-one.retained.loss)
    return f"{one.new:.1f} {_signed(-one.protected.loss)} {kept}"


def _signed(points: float) -> str:
    """Write a change with its sign; a rounded zero has none."""
    text = f"{points:+.1f}"
    return "0.0" if text[1:] == "0.0" else text


def _line(cell: Cell) -> list[str]:
    one = summarise(cell)
    if one is None:
        return [cell.row, f"failed: {cell.error}", *[""] * (len(HEADER) - 2)]
    return [
        cell.row,
        f"{one.new:.1f}",
        _change(one.protected),
        "" if one.retained is None else _change(one.retained),
        f"{one.negative_flips:.3g}",
        cell.verdict or "",
        f"{cell.seconds:.0f}",
        f"{cell.peak_memory_mib:.0f}",
    ]


def _means(row: str, cells: Sequence[Cell], chance: Mapping[tuple[str, str], float]) -> list[str]:
    """Return a row's line; a row that was run on fewer scenarios says so by their number. Nothing without scores.

    After the sum stands by how much that of one run on one scenario is off: the root mean square of the standard deviations.
    """
    found = [one for cell in cells if (one := summarise(cell)) is not None]
    if not found:
        return []
    lost = [one.protected.loss for one in found]
    deviations = [chance[key] ** 2 for cell in cells if (key := (cell.scenario, cell.row)) in chance]
    forgotten = [one.retained.loss for one in found if one.retained is not None]
    return [
        row,
        str(len(found)),
        f"{mean([one.new for one in found]):.1f}",
        f"{mean(lost):.2f}",
        f"{max(lost):.2f}",
        f"{mean(forgotten):.2f}" if forgotten else "",
        f"{mean([sum(one.figures) for one in found]):.1f}",
        f"± {mean(deviations) ** 0.5:.1f}" if deviations else "",
        f"{mean([cell.seconds for cell in cells if cell.steps]):.0f}",
    ]


def _change(change: Change) -> str:
    return f"{change.before:.1f} → {change.after:.1f}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in (header, rule, *lines))


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

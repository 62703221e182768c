"""What the held-out examples say of each label and entity type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twofold_checkpoint.protocol.findings import Confusion, Measurement, NameCount

from twofold_server.report.document import Document
from twofold_server.report.markup import Markup, tag
from twofold_server.report.numbers import score, signed
from twofold_server.report.plot import chart, dot, drawing, segment

MATRIX = 12
"""Names up to which confusions are a matrix. Of more, the commonest ones are a list."""
ROWS = 12
"""Rows that are open from the start."""
NOTHING = "no entity"


def tables_section(document: Document) -> Markup | None:
    """Show each figure by name, and what is taken for what."""
    parts = [part for figure in document.figures for part in _figure(document, figure)]
    return tag("section", tag("h2", "Name by name"), parts) if parts else None


def _figure(document: Document, figure: Measurement) -> Iterator[Markup]:
    names = [row for row in document.names if row.figure == figure.figure]
    wrong = [row for row in document.confusions if row.figure == figure.figure]
    if not names:
        return
    yield tag(
        "div",
        tag(
            "div",
            tag("h3", figure.figure.capitalize(), " ", tag("small", "F1 of each name, those that moved most first")),
            _names(names),
        ),
        tag("div", tag("h3", "Taken for one another"), _confusions(names, wrong)) if wrong else None,
        class_="pair",
    )


def f1(right: int, answered: int, expected: int) -> float:
    """Return F1; 1.0 where there was nothing to find and nothing was found."""
    return 2 * right / (answered + expected) if answered + expected else 1.0


def _names(names: Sequence[NameCount]) -> Iterator[Markup]:
    ordered = sorted(names, key=lambda count: -_weight(count))
    yield _table(ordered[:ROWS])
    if rest := ordered[ROWS:]:
        yield tag("details", tag("summary", f"{len(rest)} more names"), _table(rest))


def _table(names: Sequence[NameCount]) -> Markup:
    return tag(
        "table",
        _heads(("name", ""), ("before", "after", "", "examples")),
        tag("tbody", map(_row, names)),
        class_="names",
    )


def _heads(words: Sequence[str], numbers: Sequence[str]) -> Markup:
    cells = (*(tag("th", word) for word in words), *(tag("th", number, class_="number") for number in numbers))
    return tag("thead", tag("tr", cells))


def _weight(count: NameCount) -> float:
    """Return how much of the figure a name has moved."""
    if count.right_after is None or count.answered_after is None:
        return 0.0
    after = f1(count.right_after, count.answered_after, count.expected)
    return count.expected * abs(after - f1(count.right_before, count.answered_before, count.expected))


def _row(count: NameCount) -> Markup:
    before = f1(count.right_before, count.answered_before, count.expected)
    if count.right_after is None or count.answered_after is None:
        after, moved, mood = None, "", "even"
    else:
        after = f1(count.right_after, count.answered_after, count.expected)
        moved = "" if round(100 * (after - before), 1) == 0 else signed(after - before)
        mood = "even" if not moved else "good" if after > before else "bad"
    text = f"{score(before)}" if after is None else f"{score(before)} to {score(after)}"
    shapes = (
        segment((0, 50), (100, 50), "track"),
        None if after is None else segment((100 * before, 50), (100 * after, 50), f"moved {mood}"),
        dot((100 * before, 50), "before"),
        None if after is None else dot((100 * after, 50), "after"),
    )
    return tag(
        "tr",
        tag("th", tag("bdi", count.name), scope="row"),
        tag("td", chart(drawing(shapes, label=f"F1 {text}"), class_="spark")),
        tag("td", score(before), class_="number"),
        tag("td", "–" if after is None else score(after), class_="number"),  # noqa: RUF001 -- a dash.
        tag("td", moved, class_=f"number {mood}"),
        tag("td", f"{count.expected}", class_="number quiet"),
    )


def _confusions(names: Sequence[NameCount], wrong: Sequence[Confusion]) -> Markup | Iterator[Markup]:
    known = {row.name for row in names}
    rows: list[str | None] = [row.name for row in names]
    if any(confusion.expected is None or confusion.answered is None for confusion in wrong):
        rows.append(None)
    fits = all(
        name is None or name in known for confusion in wrong for name in (confusion.expected, confusion.answered)
    )
    return _matrix(rows, names, wrong) if fits and len(rows) <= MATRIX else _list(wrong)


def _count(before: int, after: int | None) -> int:
    return before if after is None else after


def _matrix(rows: Sequence[str | None], names: Sequence[NameCount], wrong: Sequence[Confusion]) -> Markup:
    counts = {
        (confusion.expected, confusion.answered): _count(confusion.before, confusion.after) for confusion in wrong
    }
    right = {name.name: _count(name.right_before, name.right_after) for name in names}
    most = max(1, *counts.values())
    greatest = max(1, *right.values())

    def cell(expected: str | None, answered: str | None) -> Markup:
        if expected is None and answered is None:
            return tag("td")
        if expected is not None and expected == answered:
            count = right.get(expected, 0)
            share, mood = count / greatest, "hit"
        else:
            count = counts.get((expected, answered), 0)
            share, mood = count / most, "miss"
        text = f"{expected or NOTHING}, answered {answered or NOTHING}: {count}"
        return tag("td", count or "", class_=mood, style=f"--share:{share:.2f}", title=text)

    return tag(
        "div",
        tag(
            "table",
            tag(
                "thead",
                tag("tr", tag("th", "right ↓ answered →"), (tag("th", tag("span", _named(row))) for row in rows)),
            ),
            tag(
                "tbody",
                (tag("tr", tag("th", _named(row), scope="row"), (cell(row, two) for two in rows)) for row in rows),
            ),
            class_="matrix",
        ),
        class_="scroll",
    )


def _list(wrong: Sequence[Confusion]) -> Iterator[Markup]:
    def table(confusions: Sequence[Confusion]) -> Markup:
        return tag(
            "table",
            _heads(("right", "answered"), ("before", "after")),
            tag(
                "tbody",
                (
                    tag(
                        "tr",
                        tag("th", _named(confusion.expected), scope="row"),
                        tag("td", _named(confusion.answered)),
                        tag("td", confusion.before, class_="number"),
                        tag("td", "" if confusion.after is None else confusion.after, class_="number"),
                    )
                    for confusion in confusions
                ),
            ),
            class_="names",
        )

    yield table(wrong[:ROWS])
    if rest := wrong[ROWS:]:
        yield tag("details", tag("summary", f"{len(rest)} more"), table(rest))


def _named(name: str | None) -> Markup:
    return tag("i", NOTHING) if name is None else tag("bdi", name)

"""The results on held-out examples for each label and entity type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from twofold_checkpoint.protocol.findings import Confusion, NameCount

from twofold_server.report.document import Document
from twofold_server.report.formatting import score
from twofold_server.report.plot import chart, dot, segment

MAX_MATRIX_NAMES = 12
"""Maximum number of names for a confusion matrix. With more names, the most frequent confusions are listed."""


@dataclass(frozen=True, slots=True)
class NameRow:
    """The F1 of a label or entity type, before and after. *after* is None if nothing was trained."""

    name: str
    before: float
    after: float | None
    examples: int

    @classmethod
    def of(cls, count: NameCount) -> NameRow:
        """Compute F1 from counts."""
        before = f1(count.right_before, count.answered_before, count.expected)
        after = None
        if count.right_after is not None and count.answered_after is not None:
            after = f1(count.right_after, count.answered_after, count.expected)
        return cls(count.name, before, after, count.expected)

    @property
    def difference(self) -> float:
        """After minus before; 0 if it would be shown as 0."""
        difference = 0.0 if self.after is None else self.after - self.before
        return difference if round(100 * difference, 1) else 0.0

    @property
    def tone(self) -> str:
        """The CSS class of the difference's colour."""
        return "good" if self.difference > 0 else "bad" if self.difference < 0 else "even"

    def chart(self) -> Markup:
        """Draw both values on a track from 0 to 1."""
        label = f"F1 {score(self.before)}" if self.after is None else f"F1 {score(self.before)} to {score(self.after)}"

        def shapes() -> Iterator[Markup]:
            yield segment((0, 50), (100, 50), "track")
            if self.after is not None:
                yield segment((100 * self.before, 50), (100 * self.after, 50), f"moved {self.tone}")
            yield dot((100 * self.before, 50), "before")
            if self.after is not None:
                yield dot((100 * self.after, 50), "after")

        return chart(shapes(), label=label, class_="spark")


@dataclass(frozen=True, slots=True)
class Cell:
    """How often one name was answered for another, with its share of the largest count of its kind."""

    expected: str | None
    answered: str | None
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class NameTable:
    """The names of one score, and what was confused: as a matrix if the names are few."""

    figure: str
    rows: list[NameRow]
    confusions: list[Confusion]
    matrix: list[list[Cell]]


def name_tables(document: Document) -> list[NameTable]:
    """Return the names of each score, those that changed the score most first."""
    tables = []
    for figure in (measurement.figure for measurement in document.figures):
        names = [count for count in document.names if count.figure == figure]
        wrong = [confusion for confusion in document.confusions if confusion.figure == figure]
        rows = sorted((NameRow.of(count) for count in names), key=_weight)
        if rows:
            tables.append(NameTable(figure, rows, wrong, _matrix(names, wrong)))
    return tables


def f1(right: int, answered: int, expected: int) -> float:
    """Return F1; 1.0 if nothing was expected and nothing was answered."""
    return 2 * right / (answered + expected) if answered + expected else 1.0


def _weight(row: NameRow) -> float:
    """Return how much a name contributes to the change of its score, negated."""
    return 0.0 if row.after is None else -row.examples * abs(row.after - row.before)


def _matrix(names: Sequence[NameCount], wrong: Sequence[Confusion]) -> list[list[Cell]]:
    """Return the confusion matrix, a row per expected name; empty if there is none or it would be too large."""
    counts = {(entry.expected, entry.answered): _latest(entry.before, entry.after) for entry in wrong}
    right = {count.name: _latest(count.right_before, count.right_after) for count in names}
    labels: list[str | None] = [count.name for count in names]
    confused = {name for pair in counts for name in pair}
    if None in confused:
        labels.append(None)
    if not wrong or len(labels) > MAX_MATRIX_NAMES or not confused <= {*labels}:
        return []
    max_wrong, max_right = max(1, *counts.values()), max(1, *right.values())

    def cell(expected: str | None, answered: str | None) -> Cell:
        if expected is not None and expected == answered:
            return Cell(expected, answered, right[expected], right[expected] / max_right)
        count = counts.get((expected, answered), 0)
        return Cell(expected, answered, count, count / max_wrong)

    return [[cell(expected, answered) for answered in labels] for expected in labels]


def _latest(before: int, after: int | None) -> int:
    return before if after is None else after

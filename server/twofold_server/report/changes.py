"""Examples whose answers changed: negative flips and fixed examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twofold_checkpoint.decoding import Entity
from twofold_checkpoint.examples import Span
from twofold_checkpoint.protocol.findings import Change

from twofold_server.report.document import Document

HUES = 8
"""Colours for entity types; the ninth type reuses the first colour."""


@dataclass(frozen=True, slots=True)
class ChangeGroup:
    """The changed examples of one score in one direction. *total* counts also those that are not quoted."""

    figure: str
    better: bool
    total: int
    changes: list[Change]


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a text. A span has a *type* and a *hue*, and is *wrong* if it is not expected."""

    text: str
    type: str = ""
    hue: int = 0
    wrong: bool = False


def change_groups(document: Document) -> Iterator[ChangeGroup]:
    """Yield the examples answered worse than before, then those answered better, for each score."""
    counts = {measurement.figure: measurement for measurement in document.figures}
    for figure in ("protected", "retained", "new"):
        for better in (False, True):
            changes = [change for change in document.changes if change.figure == figure and change.better == better]
            if changes and figure in counts:
                total = counts[figure].gained if better else counts[figure].lost
                yield ChangeGroup(figure, better, total, changes)


class SpanMarker:
    """Splits texts at their spans, with one colour for each entity type of a report."""

    def __init__(self, changes: Sequence[Change]) -> None:
        types = {
            span.type
            for change in changes
            for spans in (change.entities, change.before.entities, change.after.entities)
            for span in spans or ()
        }
        self._hues = {name: number % HUES for number, name in enumerate(sorted(types))}

    def rows(self, change: Change) -> Iterator[tuple[str, list[Fragment]]]:
        """Yield the fragments of a text as expected, as answered before, and as answered after."""
        expected = change.entities or ()
        for name, spans in (
            ("expected", expected),
            ("before", change.before.entities),
            ("after", change.after.entities),
        ):
            yield name, list(self._fragments(change.text, spans or (), expected))

    def _fragments(self, text: str, spans: Sequence[Span | Entity], expected: Sequence[Span]) -> Iterator[Fragment]:
        right = {(span.start, span.end, span.type) for span in expected}
        position = 0
        for span in sorted(spans, key=lambda span: (span.start, span.end)):
            start, end = max(position, span.start), min(span.end, len(text))
            if start >= end:
                continue
            yield Fragment(text[position:start])
            wrong = (span.start, span.end, span.type) not in right
            yield Fragment(text[start:end], span.type, self._hues[span.type], wrong)
            position = end
        yield Fragment(text[position:])

"""Examples that are answered otherwise than before: negative flips and fixed ones, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from twofold_checkpoint.decoding import Entity
from twofold_checkpoint.examples import Span
from twofold_checkpoint.protocol.findings import Answer, Change

from twofold_server.report.document import Document
from twofold_server.report.markup import Markup, tag
from twofold_server.report.numbers import plural, score

HUES = 8
"""Colours for entity types; the ninth type begins again with the first one."""
SHOWN = 4
"""Examples of a kind that are open from the start."""


def changes_section(document: Document) -> Markup | None:
    """Show what is answered worse than before, then what is answered better."""
    lost, gained = sum(figure.lost for figure in document.figures), sum(figure.gained for figure in document.figures)
    if not lost and not gained:
        return None
    if not document.texts:
        return tag(
            "section",
            tag("h2", "What changed"),
            tag(
                "p",
                f"{plural(lost, 'held-out example')} answered worse and {gained} better than before. None is shown: "
                "this store keeps no texts.",
                class_="lead",
            ),
        )
    hues = _hues(document.changes)
    return tag(
        "section",
        tag("h2", "What changed"),
        (_kind(document, figure, hues) for figure in ("protected", "retained", "new")),
    )


def _kind(document: Document, figure: str, hues: dict[str, int]) -> Iterator[Markup]:
    counted = next((entry for entry in document.figures if entry.figure == figure), None)
    for better in (False, True):
        chosen = [change for change in document.changes if change.figure == figure and change.better == better]
        if not chosen or counted is None:
            continue
        whole = counted.gained if better else counted.lost
        title = f"{'Fixed' if better else 'Lost'} · {figure}"
        count = f"{whole}" if whole == len(chosen) else f"{len(chosen)} of {whole}"
        yield tag("h3", title, " ", tag("small", count), class_="good" if better else "bad")
        yield tag("div", (_change(change, hues) for change in chosen[:SHOWN]), class_="changes")
        if rest := chosen[SHOWN:]:
            yield tag(
                "details",
                tag("summary", f"{len(rest)} more"),
                tag("div", (_change(change, hues) for change in rest), class_="changes"),
            )


def _change(change: Change, hues: dict[str, int]) -> Markup:
    if change.label is not None:
        return tag(
            "article",
            tag("p", change.text, class_="text", dir="auto"),
            tag(
                "p",
                _label("before", change.before, change.label),
                tag("span", "→", class_="arrow"),
                _label("after", change.after, change.label),
                class_="answers",
            ),
            class_="change",
        )
    wanted = change.entities or ()
    rows = (("right", wanted), ("before", change.before.entities or ()), ("after", change.after.entities or ()))
    return tag(
        "article",
        (
            tag(
                "div",
                tag("span", name, class_="when"),
                tag("p", _marked(change.text, spans, wanted, hues), class_="text", dir="auto"),
                class_=f"row {name}",
            )
            for name, spans in rows
        ),
        class_="change spans",
    )


def _label(when: str, answer: Answer, right: str) -> Markup:
    sure = "" if answer.score is None else f" {score(answer.score)} %"
    mood = "good" if answer.label == right else "bad"
    return tag("span", tag("bdi", answer.label or "nothing"), tag("small", sure), class_=f"chip {mood}", title=when)


def _marked(
    text: str, spans: Sequence[Span | Entity], wanted: Sequence[Span], hues: dict[str, int]
) -> Iterator[Markup | str]:
    """Cut a text at its spans and mark them; wrong spans are marked as wrong."""
    right = {(span.start, span.end, span.type) for span in wanted}
    position = 0
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        start, end = max(position, span.start), min(span.end, len(text))
        if start >= end:
            continue
        yield text[position:start]
        wrong = "" if (span.start, span.end, span.type) in right else " wrong"
        yield tag("mark", text[start:end], tag("small", tag("bdi", span.type)), class_=f"hue{hues[span.type]}{wrong}")
        position = end
    yield text[position:]


def _hues(changes: Iterable[Change]) -> dict[str, int]:
    types = {
        span.type
        for change in changes
        for spans in (change.entities, change.before.entities, change.after.entities)
        for span in spans or ()
    }
    return {name: number % HUES for number, name in enumerate(sorted(types))}

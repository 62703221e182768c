"""The section on the data set."""

from __future__ import annotations

from twofold_server.report.document import Document
from twofold_server.report.markup import Markup, tag
from twofold_server.report.plot import box, chart, drawing

OPEN = 20
"""Names that are visible before the reader expands the list."""


def data_section(document: Document) -> Markup | None:
    """Show the number of examples in each split, per label or type, and by length."""
    facts = document.dataset
    if facts is None:
        return None
    counts = (
        (facts.train_examples, "for training"),
        (facts.dev_examples, "for early stopping"),
        (facts.gate_examples, "for the gate"),
    )
    names = list(facts.label_counts.items())
    lengths = [(f"up to {end}", count) for end, count in facts.lengths]
    return tag(
        "section",
        tag("h2", "Data"),
        tag(
            "p",
            (tag("span", tag("b", f"{count:,}"), f" {what}", class_="stat") for count, what in counts),
            tag("span", tag("b", f"{facts.mean_tokens:.1f}"), " tokens per text", class_="stat"),
            class_="stats",
        ),
        tag(
            "div",
            tag("div", tag("h3", "Examples per label or type"), _bars(names[:OPEN]), _more(names[OPEN:]))
            if names
            else None,
            tag("div", tag("h3", "Texts by number of tokens"), _bars(lengths)) if lengths else None,
            class_="pair",
        ),
    )


def _bars(rows: list[tuple[str, int]]) -> Markup:
    longest = max(1, *(count for _, count in rows))
    return tag(
        "table",
        (
            tag(
                "tr",
                tag("th", tag("bdi", name), scope="row"),
                tag(
                    "td",
                    chart(drawing(box(0, 15, 100 * count / longest, 85, "bar"), label=f"{count}"), class_="spark"),
                ),
                tag("td", f"{count:,}", class_="number"),
            )
            for name, count in rows
        ),
        class_="bars",
    )


def _more(rows: list[tuple[str, int]]) -> Markup | None:
    return tag("details", tag("summary", f"{len(rows)} more"), _bars(rows)) if rows else None

"""What there was to learn from."""

from __future__ import annotations

from twofold_server.report.document import Document
from twofold_server.report.markup import Markup, tag
from twofold_server.report.plot import box, chart, drawing

OPEN = 20
"""Names that are open from the start."""


def data_section(document: Document) -> Markup | None:
    """Show what there was to learn from."""
    facts = document.dataset
    if facts is None:
        return None
    counts = (
        (facts.train_examples, "to train on"),
        (facts.dev_examples, "to stop by"),
        (facts.gate_examples, "to judge by"),
    )
    names = list(facts.label_counts.items())
    lengths = [(f"up to {end}", count) for end, count in facts.lengths]
    return tag(
        "section",
        tag("h2", "The data"),
        tag(
            "p",
            (tag("span", tag("b", f"{count:,}"), f" {what}", class_="stat") for count, what in counts),
            tag("span", tag("b", f"{facts.mean_tokens:.1f}"), " tokens a text", class_="stat"),
            class_="stats",
        ),
        tag(
            "div",
            tag("div", tag("h3", "Examples by name"), _bars(names[:OPEN]), _more(names[OPEN:])) if names else None,
            tag("div", tag("h3", "Texts by tokens"), _bars(lengths)) if lengths else None,
            class_="pair",
        ),
    )


def _bars(rows: list[tuple[str, int]]) -> Markup:
    most = max(1, *(count for _, count in rows))
    return tag(
        "table",
        (
            tag(
                "tr",
                tag("th", tag("bdi", name), scope="row"),
                tag(
                    "td",
                    chart(drawing(box(0, 15, 100 * count / most, 85, "bar"), label=f"{count}"), class_="spark"),
                ),
                tag("td", f"{count:,}", class_="number"),
            )
            for name, count in rows
        ),
        class_="bars",
    )


def _more(rows: list[tuple[str, int]]) -> Markup | None:
    return tag("details", tag("summary", f"{len(rows)} more"), _bars(rows)) if rows else None

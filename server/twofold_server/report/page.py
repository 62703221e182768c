"""The report as one HTML page without scripts, fonts or external resources."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from twofold_server.jobs.model import JobState
from twofold_server.report.changes import changes_section
from twofold_server.report.dataset import data_section
from twofold_server.report.document import Document
from twofold_server.report.figures import figures_section, gate_section
from twofold_server.report.formatting import duration
from twofold_server.report.markup import Markup, join, tag, trusted
from twofold_server.report.sections import lineage_section, notes_section, plan_section, time_section
from twofold_server.report.tables import tables_section
from twofold_server.report.training_curves import training_section

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content Security Policy of the page: it loads nothing, and its styles are inline."""


def render(document: Document) -> str:
    """Render a report as HTML, as a pure function of the document. User input is escaped."""
    word, title, tone = headline(document)
    sections = (
        figures_section(document),
        gate_section(document),
        changes_section(document),
        training_section(document),
        tables_section(document),
        data_section(document),
        notes_section(document),
        tag("div", plan_section(document), time_section(document), class_="pair wide"),
        lineage_section(document),
    )
    return html_page(
        f"{word} · {document.job_id}",
        _header(document, word, title, tone),
        tag("main", sections),
        _footer(document),
    )


def html_page(title: str, *body: object) -> str:
    """Return a complete HTML page with a title, the style sheet and the Content Security Policy."""
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            tag("style", trusted(_style())),
        ),
        tag("body", *body),
        lang="en",
    )
    return join((trusted("<!doctype html>\n"), page, "\n"))


def headline(document: Document) -> tuple[str, str, str]:
    """Return how the job ended: one word, one line, and a tone (the CSS class of its colour)."""
    unchanged = "The old checkpoint stays live."
    published = "candidate" if document.request.promote != "never" else "new checkpoint"
    match document.state, document.verdict:
        case JobState.FAILED, "pass":
            return "FAILED", f"The candidate passed the gate but could not be made live. {unchanged}", "bad"
        case JobState.FAILED, _:
            return "FAILED", f"The job failed with an error. {unchanged}", "bad"
        case JobState.CANCELLED, _:
            return "CANCELLED", f"The job was stopped before it finished. {unchanged}", "quiet"
        case _, "pass" if document.swap_seconds:
            title = "The new data was learned, the protected task did not regress, and the new checkpoint is live."
            return "PASS", title, "good"
        case _, "pass":
            return (
                "PASS",
                f"The new data was learned, and the protected task did not regress. The {published} is not live.",
                "good",
            )
        case _, "inconclusive":
            return "INCONCLUSIVE", f"There are too few held-out examples to decide. {unchanged}", "unsure"
        case JobState.REJECTED, _:
            return "REJECTED", f"The candidate was trained but did not pass the gate. {unchanged}", "bad"
    if document.request.validate_only:
        return "VALID", "The job was checked and planned. Nothing was trained.", "quiet"
    return "MEASURED", "The checkpoint was measured on the given data. Nothing was trained.", "quiet"


def _header(document: Document, word: str, title: str, tone: str) -> Markup:
    took = ""
    if document.started and document.ended:
        took = f" · {duration((document.ended - document.started).total_seconds())}"
    ended = f"{document.ended:%Y-%m-%d %H:%M} UTC" if document.ended else ""
    freeze = "nothing trained" if document.request.freeze == "all" else f"freeze {document.request.freeze}"
    return tag(
        "header",
        tag("p", tag("span", word, class_=f"verdict {tone}"), class_="badge"),
        tag("h1", title),
        tag("p", document.reason, class_="reason", dir="auto"),
        tag(
            "p",
            tag("code", document.job_id),
            f" · {document.request.head} head, {freeze} · {ended}{took}",
            class_="quiet",
        ),
        class_=tone,
    )


def _footer(document: Document) -> Markup:
    return tag(
        "footer",
        tag(
            "p",
            "Scores are in points (0.01 of a score), on held-out examples that training never saw. Interval bounds are "
            "one-sided at 95 %. The scores before are those of ",
            tag("code", document.base),
            ".",
        ),
    )


@cache
def _style() -> str:
    return (files("twofold_server.report") / "style.css").read_text(encoding="utf-8")

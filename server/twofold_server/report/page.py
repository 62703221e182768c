"""The report as one page: no script, no font, nothing from anywhere else."""

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
"""What a browser may load for the page: nothing. Its styles stand in it."""


def render(document: Document) -> str:
    """Write a report as HTML. A pure function of the document; whatever comes from a user is escaped."""
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
    return whole(
        f"{word} · {document.job_id}",
        _header(document, word, title, tone),
        tag("main", sections),
        _footer(document),
    )


def whole(title: str, *body: object) -> str:
    """Put a page around its body: its title, its styles, and what a browser may load for it."""
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
    """Say in one word, in one line and in one colour how the job ended."""
    serves = "The old checkpoint serves on."
    live = "candidate" if document.request.promote != "never" else "new checkpoint"
    match document.state, document.verdict:
        case JobState.FAILED, "pass":
            return "FAILED", f"It passed the gate and could not be made live. {serves}", "bad"
        case JobState.FAILED, _:
            return "FAILED", f"Something went wrong. {serves}", "bad"
        case JobState.CANCELLED, _:
            return "CANCELLED", f"It was stopped before its end. {serves}", "quiet"
        case _, "pass" if document.swap_seconds:
            return "PASS", "It learned, what was protected is whole, and it answers now.", "good"
        case _, "pass":
            return "PASS", f"It learned, and what was protected is whole. The {live} waits.", "good"
        case _, "inconclusive":
            return "INCONCLUSIVE", f"Too little is known to let it serve. {serves}", "unsure"
        case JobState.REJECTED, _:
            return "REJECTED", f"It was trained, and the gate said no. {serves}", "bad"
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
            "Scores are in points (0.01 of a score), on examples that training never saw. Intervals leave out 5 % on each "
            "side. Before is ",
            tag("code", document.base),
            ".",
        ),
    )


@cache
def _style() -> str:
    return (files("twofold_server.report") / "style.css").read_text(encoding="utf-8")

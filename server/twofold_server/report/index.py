"""All jobs as one page, in the style of their reports: how each ended, and where its report is."""

from __future__ import annotations

from collections.abc import Sequence

from twofold_server.jobs.model import JobState, JobView
from twofold_server.report.formatting import duration, plural
from twofold_server.report.markup import Markup, tag
from twofold_server.report.page import whole

_LONGEST = 240
"""Characters of a reason in a list; the report has all of it."""


def render_index(views: Sequence[JobView], older: int | None) -> str:
    """Write a page of jobs, newest first. *older* is what `before` is for the next page; None if this is the last."""
    rows = [_row(view) for view in views] or [
        tag("li", "There is no job yet: twofold adapt makes one.", class_="quiet")
    ]
    more = tag("footer", tag("p", tag("a", "Older jobs", href=f"/jobs?before={older}")))
    return whole(
        "Jobs · Twofold",
        tag("header", tag("h1", "Jobs"), tag("p", _sum(views), class_="quiet")),
        tag("main", tag("ol", rows, class_="jobs")),
        more if older is not None else None,
    )


def verdict_of(view: JobView) -> tuple[str, str]:
    """Say in one word and one colour where a job is, or how it ended, as its report does."""
    match view.state, view.report.verdict:
        case ((JobState.QUEUED | JobState.CANCELLED), _):
            return view.state.value.upper(), "quiet"
        case JobState.RUNNING, _:
            return "RUNNING", "running"
        case JobState.FAILED, _:
            return "FAILED", "bad"
        case _, "pass":
            return ("PASS", "good") if not view.report.rolled_back else ("UNDONE", "bad")
        case _, "inconclusive":
            return "INCONCLUSIVE", "unsure"
        case JobState.REJECTED, _:
            return "REJECTED", "bad"
    return ("VALID" if view.order.validate_only else "MEASURED"), "quiet"


def _sum(views: Sequence[JobView]) -> str:
    words = [verdict_of(view)[0].lower() for view in views]
    return " · ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _row(view: JobView) -> Markup:
    word, tone = verdict_of(view)
    name = tag("code", view.id)
    text = view.reason if len(view.reason) <= _LONGEST else f"{view.reason[:_LONGEST]}…"
    if not view.state.is_over:
        text = _meanwhile(view)
    took = f" · {duration((view.ended - view.started).total_seconds())}" if view.ended and view.started else ""
    made = f" → {view.candidate}" if view.candidate else ""
    return tag(
        "li",
        tag("span", word, class_=f"verdict {tone}"),
        tag(
            "div",
            tag("p", tag("a", name, href=f"/jobs/{view.id}/report") if view.state.is_over else name),
            tag("p", text, dir="auto"),
            tag(
                "p",
                f"{view.created:%Y-%m-%d %H:%M} UTC{took} · {view.order.head} head · ",
                tag("code", view.base + made),
                class_="quiet",
            ),
        ),
    )


def _meanwhile(view: JobView) -> str:
    """Say what a job does that is not over."""
    if view.state is JobState.RUNNING:
        return f"It is at: {view.phase}." if view.phase else "It begins."
    return f"{plural(view.queue_position, 'job')} before it." if view.queue_position else "It is the next."

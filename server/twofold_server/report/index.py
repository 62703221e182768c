"""The page that lists all jobs, with the result of each and a link to its report."""

from __future__ import annotations

from collections.abc import Sequence

from twofold_server.jobs.model import JobState, JobView
from twofold_server.report.formatting import duration, plural
from twofold_server.report.markup import Markup, tag
from twofold_server.report.page import html_page

_MAX_REASON = 240
"""Characters of a reason in the list; the report shows all of it."""


def render_index(views: Sequence[JobView], older: int | None) -> str:
    """Render a page of jobs, newest first. *older* is the `before` parameter of the next page; None on the last page."""
    rows = [_row(view) for view in views] or [
        tag("li", "There are no jobs yet. Start one with twofold adapt.", class_="quiet")
    ]
    more = tag("footer", tag("p", tag("a", "Older jobs", href=f"/jobs?before={older}")))
    return html_page(
        "Jobs · Twofold",
        tag("header", tag("h1", "Jobs"), tag("p", _sum(views), class_="quiet")),
        tag("main", tag("ol", rows, class_="jobs")),
        more if older is not None else None,
    )


def verdict_of(view: JobView) -> tuple[str, str]:
    """Return a job's state or result: one word and a tone, the same as in its report."""
    match view.state, view.report.verdict:
        case ((JobState.QUEUED | JobState.CANCELLED), _):
            return view.state.value.upper(), "quiet"
        case JobState.RUNNING, _:
            return "RUNNING", "running"
        case JobState.FAILED, _:
            return "FAILED", "bad"
        case _, "pass":
            return ("PASS", "good") if not view.report.rolled_back else ("ROLLED BACK", "bad")
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
    text = view.reason if len(view.reason) <= _MAX_REASON else f"{view.reason[:_MAX_REASON]}…"
    if not view.state.is_over:
        text = _progress(view)
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


def _progress(view: JobView) -> str:
    """Describe a job that has not ended."""
    if view.state is JobState.RUNNING:
        return f"Current phase: {view.phase}." if view.phase else "Starting."
    return f"{plural(view.queue_position, 'job')} ahead in the queue." if view.queue_position else "Next in the queue."

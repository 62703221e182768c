"""The page that lists all jobs, with the result of each and a link to its report."""

from __future__ import annotations

from collections.abc import Sequence

from twofold_server.jobs.model import Job, JobState
from twofold_server.report.formatting import duration, plural
from twofold_server.report.markup import Markup, tag
from twofold_server.report.page import html_page

_MAX_REASON = 240
"""Characters of a reason in the list; the report shows all of it."""


def render_index(jobs: Sequence[Job], older: int | None) -> str:
    """Render a page of jobs, newest first. *older* is the `before` parameter of the next page; None on the last page."""
    rows = [_row(job) for job in jobs] or [
        tag("li", "There are no jobs yet. Start one with twofold adapt.", class_="quiet")
    ]
    more = tag("footer", tag("p", tag("a", "Older jobs", href=f"/jobs?before={older}")))
    return html_page(
        "Jobs · Twofold",
        tag("header", tag("h1", "Jobs"), tag("p", _sum(jobs), class_="quiet")),
        tag("main", tag("ol", rows, class_="jobs")),
        more if older is not None else None,
    )


def verdict_of(job: Job) -> tuple[str, str]:
    """Return a job's state or result: one word and a tone, the same as in its report."""
    match job.state, job.report.verdict:
        case ((JobState.QUEUED | JobState.CANCELLED), _):
            return job.state.value.upper(), "quiet"
        case JobState.RUNNING, _:
            return "RUNNING", "running"
        case JobState.FAILED, _:
            return "FAILED", "bad"
        case _, "pass":
            return ("PASS", "good") if not job.report.rolled_back else ("ROLLED BACK", "bad")
        case _, "inconclusive":
            return "INCONCLUSIVE", "unsure"
        case JobState.REJECTED, _:
            return "REJECTED", "bad"
    return ("VALID" if job.order.validate_only else "MEASURED"), "quiet"


def _sum(jobs: Sequence[Job]) -> str:
    words = [verdict_of(job)[0].lower() for job in jobs]
    return " · ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _row(job: Job) -> Markup:
    word, tone = verdict_of(job)
    name = tag("code", job.id)
    text = job.reason if len(job.reason) <= _MAX_REASON else f"{job.reason[:_MAX_REASON]}…"
    if not job.state.is_over:
        text = _progress(job)
    took = f" · {duration((job.ended - job.started).total_seconds())}" if job.ended and job.started else ""
    made = f" → {job.candidate}" if job.candidate else ""
    return tag(
        "li",
        tag("span", word, class_=f"verdict {tone}"),
        tag(
            "div",
            tag("p", tag("a", name, href=f"/jobs/{job.id}/report") if job.state.is_over else name),
            tag("p", text, dir="auto"),
            tag(
                "p",
                f"{job.created:%Y-%m-%d %H:%M} UTC{took} · {job.order.head} head · ",
                tag("code", job.base + made),
                class_="quiet",
            ),
        ),
    )


def _progress(job: Job) -> str:
    """Describe a job that has not ended."""
    if job.state is JobState.RUNNING:
        return f"Current phase: {job.phase}." if job.phase else "Starting."
    return f"{plural(job.queue_position, 'job')} ahead in the queue." if job.queue_position else "Next in the queue."

"""The page that lists all jobs, with the outcome of each and a link to its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from twofold_server.jobs.model import Job
from twofold_server.report.outcome import Outcome, outcome
from twofold_server.report.rendering import render_template


def render_index(jobs: Sequence[Job], older: int | None) -> str:
    """Render a page of jobs, newest first. *older* is the `before` parameter of the next page; None on the last page."""
    outcomes = [outcome_of(job) for job in jobs]
    return render_template(
        "index.html.j2",
        rows=list(zip(jobs, outcomes, strict=True)),
        counts=Counter(outcome.word.lower() for outcome in outcomes),
        older=older,
    )


def outcome_of(job: Job) -> Outcome:
    """Return the outcome of a job: the same as in its report, until its checkpoint is rolled back."""
    report = job.report
    return outcome(
        job.state, report.verdict, validate_only=job.spec.request.validate_only, rolled_back=bool(report.rolled_back)
    )

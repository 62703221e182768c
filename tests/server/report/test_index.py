"""The list of jobs: one word for each, whatever became of it."""

from __future__ import annotations

import datetime as dt

import pytest
from twofold_server.jobs.model import JobState, JobView, Order, Phase, Report
from twofold_server.report.index import render_index, verdict_of

NOW = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)


def job(state=JobState.SUCCEEDED, verdict=None, **fields):
    """Make a job."""
    report = Report(verdict=verdict, rolled_back=fields.pop("rolled_back", ""))
    order = Order(head="ner", validate_only=fields.pop("validate_only", False))
    return JobView(id="job-1", order=order, created=NOW, base="a", state=state, report=report, **fields)


WORDS = [
    (job(JobState.QUEUED), "QUEUED", "quiet"),
    (job(JobState.RUNNING, "pass"), "RUNNING", "running"),
    (job(verdict="pass"), "PASS", "good"),
    (job(verdict="pass", rolled_back="It was bad."), "UNDONE", "bad"),
    (job(JobState.REJECTED, "fail"), "REJECTED", "bad"),
    (job(JobState.REJECTED, "inconclusive"), "INCONCLUSIVE", "unsure"),
    (job(JobState.FAILED, "pass"), "FAILED", "bad"),
    (job(JobState.CANCELLED), "CANCELLED", "quiet"),
    (job(validate_only=True), "VALID", "quiet"),
    (job(), "MEASURED", "quiet"),
]


@pytest.mark.parametrize(("view", "word", "tone"), WORDS)
def test_words(view, word, tone):
    """Each job has one word and one colour, those of its report, and the page says both and counts the word."""
    page = render_index([view], None)

    assert verdict_of(view) == (word, tone)
    assert f'<span class="verdict {tone}">{word}</span>' in page
    assert f"1 {word.lower()}" in page
    assert ('href="/jobs/job-1/report"' in page) is view.state.is_over


def test_what_a_job_does_that_is_not_over():
    """A job that waits says how many are before it, one that runs its phase."""
    train = Phase(name="train", started=NOW)

    assert "2 jobs before it." in render_index([job(JobState.QUEUED, queue_position=2)], None)
    assert "It is the next." in render_index([job(JobState.QUEUED)], None)
    assert "It is at: train." in render_index([job(JobState.RUNNING, phases=(train,))], None)
    assert "It begins." in render_index([job(JobState.RUNNING)], None)


def test_what_a_caller_wrote_is_escaped_and_cut():
    """A reason is text, however it looks, and only its beginning stands in the list."""
    page = render_index([job(JobState.FAILED, reason="<b>bold</b>" + "x" * 900)], None)

    assert "&lt;b&gt;bold" in page
    assert "<b>" not in page
    assert "x" * 300 not in page


def test_older_jobs_are_a_link_away():
    """Where there are older jobs the page links to them; without any jobs it says how to make one."""
    assert 'href="/jobs?before=7"' in render_index([job()], 7)
    assert "Older jobs" not in render_index([job()], None)
    assert "twofold adapt" in render_index([], None)

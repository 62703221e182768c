"""The index page of jobs shows one word for each job."""

from __future__ import annotations

import datetime as dt

import pytest
from support.job_specs import job_spec
from twofold_server.jobs.model import Job, JobState, Phase, Report
from twofold_server.report.index import outcome_of, render_index
from twofold_server.report.outcome import Outcome

NOW = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)


def job(state=JobState.SUCCEEDED, verdict=None, **fields):
    """Return a job."""
    report = Report(verdict=verdict, rolled_back=fields.pop("rolled_back", ""))
    spec = job_spec(head="ner", validate_only=fields.pop("validate_only", False))
    return Job(id="job-1", spec=spec, created=NOW, base="a", state=state, report=report, **fields)


WORDS = [
    (job(JobState.QUEUED), "QUEUED", "quiet"),
    (job(JobState.RUNNING, "pass"), "RUNNING", "running"),
    (job(verdict="pass"), "PASS", "good"),
    (job(verdict="pass", rolled_back="It was bad."), "ROLLED BACK", "bad"),
    (job(JobState.REJECTED, "fail"), "REJECTED", "bad"),
    (job(JobState.REJECTED, "inconclusive"), "INCONCLUSIVE", "unsure"),
    (job(JobState.FAILED, "pass"), "FAILED", "bad"),
    (job(JobState.CANCELLED), "CANCELLED", "quiet"),
    (job(validate_only=True), "VALID", "quiet"),
    (job(), "MEASURED", "quiet"),
]


@pytest.mark.parametrize(("view", "word", "tone"), WORDS)
def test_words(view, word, tone):
    """Each job has the word and the tone of its report; the page shows both and counts the word."""
    page = render_index([view], None)

    assert outcome_of(view) == Outcome(word, tone)
    assert f'<span class="verdict {tone}">{word}</span>' in page
    assert f"1 {word.lower()}" in page
    assert ('href="/jobs/job-1/report"' in page) is view.state.is_over


def test_progress_of_unfinished_jobs():
    """A queued job shows its queue position, a running job its phase."""
    train = Phase(name="train", started=NOW)

    assert "2 jobs ahead in the queue." in render_index([job(JobState.QUEUED, queue_position=2)], None)
    assert "Next in the queue." in render_index([job(JobState.QUEUED)], None)
    assert "Current phase: train." in render_index([job(JobState.RUNNING, phases=(train,))], None)
    assert "Starting." in render_index([job(JobState.RUNNING)], None)


def test_reasons_are_escaped_and_truncated():
    """A reason is escaped, and the list shows only its beginning."""
    page = render_index([job(JobState.FAILED, reason="<b>bold</b>" + "x" * 900)], None)

    assert "&lt;b&gt;bold" in page
    assert "<b>" not in page
    assert "x" * 300 not in page


def test_older_jobs_are_a_link_away():
    """The page links to older jobs; without jobs it says how to start one."""
    assert 'href="/jobs?before=7"' in render_index([job()], 7)
    assert "Older jobs" not in render_index([job()], None)
    assert "twofold adapt" in render_index([], None)

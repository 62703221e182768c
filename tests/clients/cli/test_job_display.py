from datetime import UTC, datetime, timedelta
from functools import reduce

import pytest
from rich.console import Console
from twofold import (
    Head,
    Job,
    JobEvent,
    JobReport,
    JobState,
    PhaseEnded,
    PhaseTiming,
    ScoreChange,
    StepProgress,
    Verdict,
)
from twofold.cli._job_display import format_event, render_job, render_progress
from twofold.cli._job_progress import JobProgress

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _lines(view):
    console = Console(width=100, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(view)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_progress_during_training():
    """A running job shows the completed phases, the current one with its time, the step and the last message."""
    events = [
        JobEvent(time=NOON, phase="validate", payload=PhaseEnded(seconds=1.25)),
        JobEvent(time=NOON, phase="train", message="Training [the head]."),
        JobEvent(time=NOON, phase="train", payload=StepProgress(stage="heads", step=3, total_steps=9, loss=0.5, remaining_seconds=61.0)),
    ]  # fmt: skip
    progress = reduce(JobProgress.apply, events, JobProgress(job=Job(id="j", head=Head.NER, state=JobState.RUNNING)))

    lines = _lines(render_progress(progress, NOON + timedelta(seconds=7)))

    assert lines[0] == "j ner head, freeze auto RUNNING"
    assert lines[1:3] == ["✓ validate 1.2 s", "● train 7 s"]
    assert lines[3].startswith("heads ")
    assert lines[3].endswith("3/9 loss 0.5000 1:01 left")
    assert lines[-1] == "Training [the head]."


def test_scores():
    """The scores are shown before and after, with the change in points."""
    report = JobReport(
        protected=ScoreChange(metric="f1", before=0.9, after=0.88, examples=40),
        new=ScoreChange(metric="accuracy", after=0.5),
        verdict=Verdict.FAIL,
    )
    timing = PhaseTiming(phase="gate", start_time=NOON, end_time=NOON + timedelta(seconds=2))

    lines = _lines(render_job(Job(id="j", reason="No.", report=report, phases=(timing,))))

    assert "protected task f1 90.0 88.0 -2.0 40" in lines
    assert "new data accuracy 50.0" in lines
    assert "verdict FAIL" in lines
    assert "gate 2.0 s" in lines


@pytest.mark.parametrize(("step", "printed"), [(1, False), (2, True)])
def test_log_lines_of_steps(step, printed):
    """A log gets one line for every twentieth of the steps."""
    before = JobProgress(job=Job(id="j"), step=StepProgress(step=0, total_steps=40))
    event = JobEvent(phase="train", payload=StepProgress(stage="heads", step=step, total_steps=40))

    assert bool(format_event(event, before)) is printed

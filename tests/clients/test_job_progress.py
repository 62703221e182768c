from datetime import UTC, datetime, timedelta
from functools import reduce

import pytest
from rich.console import Console
from twofold import Comparison, Head, Job, JobEvent, JobReport, JobState, PhaseEnded, PhaseTiming, StepProgress, Verdict
from twofold.cli._job_progress import Board, board_view, event_line, job_view

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _text(view):
    console = Console(width=100, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(view)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_board_while_it_trains():
    """The board shows what is done, what runs and for how long, the progress and the last word."""
    events = [
        JobEvent(time=NOON, phase="validate", payload=PhaseEnded(seconds=1.25)),
        JobEvent(time=NOON, phase="train", message="Training [the head]."),
        JobEvent(time=NOON, phase="train", payload=StepProgress(stage="heads", step=3, total_steps=9, loss=0.5, remaining_seconds=61.0)),
    ]  # fmt: skip
    board = reduce(Board.after, events, Board(job=Job(id="j", head=Head.NER, state=JobState.RUNNING)))

    shown = _text(board_view(board, NOON + timedelta(seconds=7)))

    assert shown[0] == "j ner head, freeze auto RUNNING"
    assert shown[1:3] == ["✓ validate 1.2 s", "● train 7 s"]
    assert shown[3].startswith("heads ")
    assert shown[3].endswith("3/9 loss 0.5000 1:01 left")
    assert shown[-1] == "Training [the head]."


def test_scores():
    """The figures stand before and after, with the change in points."""
    report = JobReport(
        protected=Comparison(metric="f1", before=0.9, after=0.88, examples=40),
        new=Comparison(metric="accuracy", after=0.5),
        verdict=Verdict.FAIL,
    )
    timing = PhaseTiming(phase="gate", start_time=NOON, end_time=NOON + timedelta(seconds=2))

    shown = _text(job_view(Job(id="j", reason="No.", report=report, phases=(timing,))))

    assert "protected task f1 90.0 88.0 -2.0 40" in shown
    assert "new data accuracy 50.0" in shown
    assert "verdict FAIL" in shown
    assert "gate 2.0 s" in shown


@pytest.mark.parametrize(("step", "said"), [(1, False), (2, True)])
def test_lines_are_few(step, said):
    """A log gets a line for each twentieth of the steps and not for each step."""
    board = Board(job=Job(id="j"), progress=StepProgress(step=0, total_steps=40))
    event = JobEvent(phase="train", payload=StepProgress(stage="heads", step=step, total_steps=40))

    assert bool(event_line(event, board)) is said

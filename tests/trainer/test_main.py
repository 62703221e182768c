"""The command line: only events on stdout, a last event in every case, and signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny_models
from trainer.conftest import MakeJob
from twofold_checkpoint.protocol.events import Finished, NoteAdded, PhaseStarted, Published, StepCompleted, from_line
from twofold_checkpoint.protocol.job import Hyperparameters, write_job_file
from twofold_checkpoint.store import Store
from twofold_trainer import __main__ as command

pytestmark = pytest.mark.slow

RUN = [sys.executable, "-m", "twofold_trainer", "run", "--threads", "1"]


def test_a_job_file_in_events_out(make_job: MakeJob, store: Store, tmp_path: Path) -> None:
    """A job that runs as a process writes only events to stdout, publishes, and exits with 0."""
    rates = Hyperparameters(epochs=20, head_learning_rate=3e-2, patience=20)
    write_job_file(tmp_path / "job.json", make_job("ner", freeze="backbone", hyperparameters=rates))
    done = subprocess.run([*RUN, str(tmp_path / "job.json")], capture_output=True, check=False, timeout=120)
    events = [from_line(line) for line in done.stdout.splitlines(keepends=True)]

    assert done.returncode == 0
    assert isinstance(events[0], PhaseStarted)
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "succeeded", done.stderr.decode()
    (published,) = (event for event in events if isinstance(event, Published))
    store.get(published.checkpoint_id).verify()


def test_sigterm_cancels(make_job: MakeJob, store: Store, tmp_path: Path) -> None:
    """SIGTERM during training soon ends the process with a last event and exit code 0, and leaves the store unchanged."""
    endless = Hyperparameters(epochs=1000, patience=10_000)
    write_job_file(tmp_path / "job.json", make_job("ner", freeze="head", hyperparameters=endless))
    with subprocess.Popen([*RUN, str(tmp_path / "job.json")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if isinstance(from_line(line), StepCompleted):
                break
        process.send_signal(signal.SIGTERM)
        rest = [from_line(line) for line in process.stdout]
        assert process.wait(timeout=20) == 0

    assert isinstance(rest[-1], Finished)
    assert rest[-1].outcome == "cancelled"
    assert len(store.list()) == 1
    assert not list((store.root / "staging").iterdir())


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), ("{", "cannot read the job file"), ("{}", "`id`")]
)
def test_a_bad_job_file_is_a_failure_with_a_word(content: str | None, reason: str, tmp_path: Path) -> None:
    """An unreadable job file is reported by an event, like any other failure."""
    path = tmp_path / "job.json"
    if content is not None:
        path.write_text(content)
    done = subprocess.run([*RUN, str(path)], capture_output=True, check=False, timeout=60)
    event = from_line(done.stdout)

    assert done.returncode == 0
    assert isinstance(event, Finished)
    assert event.outcome == "failed"
    assert reason in event.reason


def test_init_names_an_invalid_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid line ends init with exit code 1 and a message that names the line."""
    (tmp_path / "train.conll").write_text("Paris LOC\n")
    code = command._init(
        command._parser().parse_args(["init", "--train", str(tmp_path / "train.conll"), "--out", str(tmp_path / "s")]),
        command.StopSignal(),
    )

    assert code == 1
    assert "train.conll:1: tag: 'LOC' is not a BIO tag" in capsys.readouterr().err


def test_every_event_has_a_line_for_people(make_job: MakeJob) -> None:
    """Every event of a job has a one-line text."""
    events = tiny_models.until(make_job("ner", freeze="backbone"), "export")

    for event in [*events, NoteAdded(message="x", warning=True), Published(checkpoint_id="x")]:
        assert command.event_line(event).strip()
        assert "\n" not in command.event_line(event)

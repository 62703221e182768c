from dataclasses import replace

import grpc
import pytest
from twofold import JobState, Retry
from twofold.cli._watch import EXIT_CODES
from twofold.testing import job_script


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("rejected", 3), ("failed", 1), ("cancelled", 4)])
def test_watch(run, server, train, *, state, code, terminal):
    """Watching a job ends with its reason and an exit code for its state."""
    server.play_next(replace(job_script(state=state, reason="That is why."), interval=0.002))

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch", terminal=terminal)

    assert result.exit_code == code
    assert "That is why." in result.stdout
    assert state.upper() in result.stdout
    assert "protected task" in result.stdout
    assert "2 annotations do not match token boundaries." in result.stdout
    assert ("\x1b[" in result.stdout) is terminal


def test_restart_of_the_server(run, server, train):
    """A watch survives a server that is away for longer than other calls wait."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", after_events=0, times=Retry().attempts + 1)

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch")

    assert result.exit_code == 0, result.stderr


def test_server_that_stays_away(run, server, train, monkeypatch):
    """The watch ends with its own exit code, because the job has not failed, and says how to follow it again."""
    monkeypatch.setattr("twofold.cli._watch.RECONNECT", Retry(attempts=2))
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", times=9)

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch")

    assert result.exit_code == 5
    assert "The job continues once the server is back; follow it: twofold jobs watch job-1" in result.stderr


def test_json(run_json, train):
    """With --json the events and then the job are JSON lines."""
    *events, job = run_json("--json", "adapt", "--train", str(train), "--head", "ner", "--watch")

    assert [event["sequence"] for event in events] == list(range(1, 17))
    assert job["state"] == "succeeded"


def test_interrupt(run, train, monkeypatch):
    """Interrupting a watch leaves the job running and says how to cancel it."""
    monkeypatch.setattr("twofold.cli._watch.format_event", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch")

    assert result.exit_code == 130
    assert "twofold jobs cancel job-1" in result.stderr


def test_exit_codes():
    """Every final state has its own exit code."""
    assert set(EXIT_CODES) == {state for state in JobState if state.is_over}
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)

"""What every command of `twofold` has in common."""

import json
import os
import subprocess
import sys

import click
import grpc
import pytest
from click.testing import CliRunner
from twofold.cli._app import app
from twofold.cli._hints import advice_of
from twofold.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    TwofoldError,
)
from twofold.testing import job_script

COMMANDS = {
    "predict": ["a"],
    "embed": ["a"],
    "adapt": ["--train", "train.jsonl", "--head", "ner"],
    "jobs": [],
    "jobs show": ["job-1"],
    "jobs watch": ["job-1"],
    "jobs cancel": ["job-1"],
    "jobs report": ["job-1"],
    "checkpoints": [],
    "history": [],
    "promote": ["first"],
    "roll-back": [],
    "delete": ["job-1-candidate"],
    "model": [],
    "health": [],
    "doctor": [],
}
TOLD_BY_ITSELF = {"doctor", "health"}  # Anybody may ask for health, and the doctor's failures are its results.


def names(command, path=""):
    """Yield the names of the commands below one."""
    for name, one in command.commands.items():
        yield f"{path}{name}"
        if isinstance(one, click.Group):
            yield from names(one, f"{path}{name} ")


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    """Run a command where there is a file to train with, as if on a terminal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "entities": []}\n')

    def run(name, *more, target=server.target):
        env = {"TWOFOLD_TARGET": target, "FORCE_COLOR": "1"}
        return CliRunner().invoke(app, ["--timeout", "5", *name.split(), *COMMANDS[name], *more], env=env)

    return run


def test_the_table_has_every_command():
    """The tests below see every command that there is."""
    assert set(COMMANDS) == set(names(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(run, server, name):
    """With --json behind it, each command prints lines of JSON and nothing else, though a person reads along."""
    server.play_next(job_script(state=None if name == "jobs cancel" else "succeeded"))
    run("adapt", "--promote", "manual")
    if name == "roll-back":
        run("adapt", "--watch")

    result = run(name, "--json")

    assert result.stdout, result.stderr
    for line in result.stdout.splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - TOLD_BY_ITSELF))
def test_every_refusal_says_what_to_do_next(run, server, name):
    """A command whose caller may not call says so, and on a second line with which token."""
    server.fail_next(grpc.StatusCode.PERMISSION_DENIED, message="the token has no such scope", times=9)

    result = run(name)

    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "Error: the token has no such scope"
    assert result.stderr.splitlines()[1].startswith("Next: Give a token that has the ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_without_a_server_says_what_to_do_next(run, name):
    """A command that reaches nobody names the target and how to find out more."""
    result = run(name, target="127.0.0.1:1")

    assert result.exit_code == 1
    assert "127.0.0.1:1 does not answer" in result.output
    assert ("Start one there" if name == "doctor" else "twofold doctor") in result.output


ADVICE = [
    (OverloadedError("x", retry_after=2.5), "predict", "in 2.5 seconds"),
    (OverloadedError("x"), "adapt", "in a moment"),
    (DeadlineExceededError("x"), "predict", "--timeout"),
    (NotFoundError("x"), "jobs", "twofold jobs"),
    (NotFoundError("x"), "promote", "twofold checkpoints"),
    (NotFoundError("x"), "adapt", "twofold checkpoints"),
    (NotFoundError("x"), "health", "twofold health --help"),
    (InvalidArgumentError("x"), "adapt", "twofold adapt --help"),
    (AlreadyExistsError("x"), "adapt", "--request-id"),
    (FailedPreconditionError("x"), "jobs", "twofold jobs show"),
    (FailedPreconditionError("x"), "adapt", "twofold jobs"),
    (FailedPreconditionError("x"), "roll-back", "twofold checkpoints"),
    (TwofoldError("x"), "predict", "twofold doctor"),
    (UnicodeError("x"), "predict", "UTF-8"),
    (FileNotFoundError("x"), "predict", "the file is there"),
]


@pytest.mark.parametrize(("error", "command", "says"), ADVICE)
def test_advice(error, command, says):
    """Every kind of error has advice of its own."""
    assert says in advice_of(error, command)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    """Each shell gets a script, and the command then completes commands and options."""
    base = [sys.executable, "-m", "twofold.cli"]
    script = subprocess.run(
        base, env=os.environ | {"_TWOFOLD_COMPLETE": f"{shell}_source"}, capture_output=True, text=True, check=False
    )
    if shell == "bash" and "Couldn't detect Bash" in script.stderr:
        pytest.skip("there is no bash to ask for its version")
    assert f"_TWOFOLD_COMPLETE={shell}_complete" in script.stdout
    asked = {"_TWOFOLD_COMPLETE": f"{shell}_complete", "COMP_WORDS": "twofold jobs rep", "COMP_CWORD": "2"}
    asked["COMP_CWORD"] = "rep" if shell == "fish" else "2"
    found = subprocess.run(base, env=os.environ | asked, capture_output=True, text=True, check=False)

    assert "report" in found.stdout
    assert "checkpoints" not in found.stdout


@pytest.mark.parametrize("name", ["jobs show", "jobs watch", "jobs report"])
def test_the_newest_job(server, tmp_path, monkeypatch, name):
    """Whoever names no job means the newest one; if there is none, the error says how to make one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "entities": []}\n')

    def run(*words):
        return CliRunner().invoke(app, words, env={"TWOFOLD_TARGET": server.target})

    nothing = run(*name.split())
    assert (nothing.exit_code, "there is no job yet; make one: twofold adapt" in nothing.output) == (1, True)

    for _ in range(2):
        server.play_next(job_script(state="succeeded"))
        assert run("adapt", "--train", "train.jsonl", "--head", "ner").exit_code == 0
    shown = run(*name.split(), "--json")
    assert (shown.exit_code, '"job-2"' in shown.output, '"job-1"' in shown.output) == (0, True, False)

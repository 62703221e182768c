"""What all commands of `twofold` have in common."""

import json
import os
import re
import subprocess
import sys

import click
import grpc
import pytest
from twofold.cli._app import app
from twofold.cli._hints import hint_for
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
    "promote": ["first"],
    "roll-back": [],
    "doctor": [],
    "health": [],
    "jobs list": [],
    "jobs show": ["job-1"],
    "jobs watch": ["job-1"],
    "jobs cancel": ["job-1"],
    "jobs report": ["job-1"],
    "checkpoints list": [],
    "checkpoints show": [],
    "checkpoints promote": ["first"],
    "checkpoints roll-back": [],
    "checkpoints delete": ["job-1-candidate"],
    "checkpoints history": [],
    "model show": [],
}
GROUPS = {"jobs", "checkpoints", "model"}
NEVER_DENIED = {"doctor", "health"}  # Health needs no token, and the doctor reports a denied call as a result.


def command_names(group, path=""):
    """Yield the names of the commands below a group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from command_names(command, f"{path}{name} ")
        else:
            yield f"{path}{name}"


def all_commands(command):
    """Yield a command and all commands below it."""
    yield command
    for subcommand in command.commands.values() if isinstance(command, click.Group) else ():
        yield from all_commands(subcommand)


@pytest.fixture
def run_command(run, server, tmp_path, monkeypatch):
    """Run a command by its name with the arguments in COMMANDS, as if on a terminal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "entities": []}\n')

    def run_command(name, *options, target=server.target):
        args = ["--timeout", "5", *name.split(), *COMMANDS[name], *options]
        return run(*args, terminal=True, env={"TWOFOLD_TARGET": target})

    return run_command


def test_the_table_is_complete():
    """COMMANDS contains every command, and GROUPS every group."""
    assert set(COMMANDS) == set(command_names(app))
    assert {name for name, command in app.commands.items() if isinstance(command, click.Group)} == GROUPS


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_group_alone_prints_its_help(run, name):
    """A noun without a verb prints the help page and calls no server."""
    result = run(name)

    assert f"Usage: app {name} [OPTIONS] COMMAND" in result.stdout + result.stderr
    assert "  show " in result.stdout + result.stderr


@pytest.mark.parametrize("command", list(all_commands(app)), ids=lambda command: command.name)
def test_every_option_is_explained(command):
    """Every command and every option has a help text, and a metavar that says what its value is."""
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.metavar or option.type not in {click.STRING, click.INT, click.FLOAT}, option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json(run_command, server, name):
    """With --json after it, each command prints JSON lines and nothing else, even on a terminal."""
    server.play_next(job_script(state=None if name == "jobs cancel" else "succeeded"))
    run_command("adapt", "--promote", "manual")
    if name.endswith("roll-back"):
        run_command("adapt", "--watch")

    result = run_command(name, "--json")

    assert result.stdout, result.stderr
    for line in result.stdout.splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NEVER_DENIED))
def test_a_denied_call_prints_a_hint(run_command, server, name):
    """A call that is denied prints the error, and on a second line which token is needed."""
    server.fail_next(grpc.StatusCode.PERMISSION_DENIED, message="the token has no such scope", times=9)

    result = run_command(name)

    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "Error: the token has no such scope"
    assert re.match("Next: Use a token with the (predict|adapt|admin) scope", result.stderr.splitlines()[1])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_server_prints_a_hint(run_command, name):
    """Without a server each command names the target and how to find out more."""
    result = run_command(name, target="127.0.0.1:1")

    assert result.exit_code == 1
    output = result.stdout + result.stderr
    assert "127.0.0.1:1 does not answer" in output
    assert ("Start a server" if name == "doctor" else "twofold doctor") in output


HINTS = [
    (OverloadedError("x", retry_after=2.5), "predict", "in 2.5 seconds"),
    (OverloadedError("x"), "adapt", "in a moment"),
    (DeadlineExceededError("x"), "predict", "--timeout"),
    (NotFoundError("x"), "jobs", "twofold jobs list"),
    (NotFoundError("x"), "promote", "twofold checkpoints list"),
    (NotFoundError("x"), "checkpoints", "twofold checkpoints list"),
    (NotFoundError("x"), "adapt", "twofold checkpoints list"),
    (NotFoundError("x"), "health", "twofold health --help"),
    (InvalidArgumentError("x"), "adapt", "twofold adapt --help"),
    (AlreadyExistsError("x"), "adapt", "--request-id"),
    (FailedPreconditionError("x"), "jobs", "twofold jobs show"),
    (FailedPreconditionError("x"), "adapt", "twofold jobs list"),
    (FailedPreconditionError("x"), "roll-back", "twofold checkpoints list"),
    (TwofoldError("x"), "predict", "twofold doctor"),
    (UnicodeError("x"), "predict", "UTF-8"),
    (FileNotFoundError("x"), "predict", "the file exists"),
]


@pytest.mark.parametrize(("error", "command", "text"), HINTS)
def test_hints(error, command, text):
    """Every kind of error has its own hint."""
    assert text in hint_for(error, command)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    """Each shell gets a script, and the command completes its subcommands."""
    base = [sys.executable, "-m", "twofold.cli"]
    script = subprocess.run(
        base, env=os.environ | {"_TWOFOLD_COMPLETE": f"{shell}_source"}, capture_output=True, text=True, check=False
    )
    if shell == "bash" and "Couldn't detect Bash" in script.stderr:
        pytest.skip("there is no bash to ask for its version")
    assert f"_TWOFOLD_COMPLETE={shell}_complete" in script.stdout
    request = {"_TWOFOLD_COMPLETE": f"{shell}_complete", "COMP_WORDS": "twofold jobs rep"}
    request["COMP_CWORD"] = "rep" if shell == "fish" else "2"
    completion = subprocess.run(base, env=os.environ | request, capture_output=True, text=True, check=False)

    assert "report" in completion.stdout
    assert "checkpoints" not in completion.stdout

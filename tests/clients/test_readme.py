import re
from pathlib import Path

import click
import pytest
import twofold
from clients.answers import ANSWERS
from twofold.cli._app import app
from twofold.testing import FakeServer

README = (Path(twofold.__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^twofold ([a-z-]+)", README, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number):
    """Every example of the README runs as it stands, but for the server's address."""
    with FakeServer(ANSWERS) as server:
        code = EXAMPLES[number].replace("127.0.0.1:8500", server.target)
        code = re.sub(r'"twofold.example:443",\s*tls=TLS\(\),', f'"{server.target}",', code)
        exec(compile(code, f"README.md example {number + 1}", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command):
    """Every command of the README exists."""
    assert isinstance(app.commands[command], click.Command)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--([a-z-]+)", README))))
def test_option(option):
    """Every option of the README exists."""
    options = {opt for command in below(app) for one in command.params for opt in one.opts}

    assert f"--{option}" in options


def below(command):
    """Yield a command and all that are below it."""
    yield command
    for one in command.commands.values() if isinstance(command, click.Group) else ():
        yield from below(one)

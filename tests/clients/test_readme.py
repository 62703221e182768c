import re
from pathlib import Path

import click
import pytest
import twofold
from clients.samples import PREDICTIONS
from twofold.cli._app import app
from twofold.testing import FakeServer

README = (Path(twofold.__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^twofold ([a-z-]+(?: [a-z-]+)?)", README, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number):
    """Every example of the README runs as it stands, but for the server's address."""
    with FakeServer(PREDICTIONS) as server:
        code = EXAMPLES[number].replace("127.0.0.1:8500", server.target)
        code = re.sub(r'"twofold.example:443",\s*tls=TLS\(\),', f'"{server.target}",', code)
        exec(compile(code, f"README.md example {number + 1}", "exec"), {})


@pytest.mark.parametrize("name", COMMANDS)
def test_command(name):
    """Every command of the README exists."""
    command = app
    for word in name.split():
        if isinstance(command, click.Group):
            command = command.commands[word]
    assert not isinstance(command, click.Group)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--([a-z-]+)", README))))
def test_option(option):
    """Every option of the README exists."""
    parameters = [
        parameter for command in all_commands(app) for parameter in command.get_params(click.Context(command))
    ]

    assert f"--{option}" in {name for parameter in parameters for name in parameter.opts}


def all_commands(command):
    """Yield a command and all commands below it."""
    yield command
    for subcommand in command.commands.values() if isinstance(command, click.Group) else ():
        yield from all_commands(subcommand)

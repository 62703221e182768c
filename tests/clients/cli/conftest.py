"""Run the `twofold` command in this process, against the fake server."""

import inspect
import json

import pytest
from click.testing import CliRunner
from twofold.cli._app import app

# click 8.1 merges the two outputs unless it is told not to; later versions never do.
_RUNNER = CliRunner(**({"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}))


@pytest.fixture
def run(server):
    """Run the command; with terminal=True as if its output went to a terminal."""

    def run(*args, terminal=False, env=None, **kwargs):
        variables = {"TWOFOLD_TARGET": server.target, "FORCE_COLOR": "1" if terminal else None, "COLUMNS": "100"}
        return _RUNNER.invoke(app, args, env=variables | (env or {}), **kwargs)

    return run


@pytest.fixture
def run_json(run):
    """Run the command, which must succeed, and return its JSON lines."""

    def run_json(*args, **kwargs):
        result = run(*args, **kwargs)
        assert (result.exit_code, result.stderr) == (0, "")
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run_json


@pytest.fixture
def train(tmp_path):
    """Write a small training file."""
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"text": "a", "label": "x"}\n\n{"text": "b\u2028c", "entities": [], "other": 1}\n', encoding="utf-8"
    )
    return path

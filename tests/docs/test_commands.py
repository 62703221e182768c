"""The commands in README.md and docs/ run as tests, page by page, with a tiny model."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from support import tiny_checkpoints
from support.fenced_blocks import PAGES, ROOT, Fence, fences
from support.server_command import resolved_settings
from twofold.cli._app import app
from twofold_checkpoint.examples import Example, read_examples
from twofold_server.testing import free_port

pytestmark = pytest.mark.slow

PATIENCE = 280
ELSEWHERE = {"docs/open-inference.md": "tests/server/test_tritonclient.py"}
"""Pages whose blocks of Python run in another test, in an environment of their own."""
OF_OTHERS = {"make", "source", "npm", "go", "protoc", "docker", "kubectl"}
"""Commands that may stand in a block that is not run."""
RATES = "--epochs 8 --batch-size 16 --head-learning-rate 2e-2 --backbone-learning-rate 3e-3"
"""Random weights learn from scratch, at rates that a pretrained backbone would not survive."""


def name_of(page: Path) -> str:
    """Return a page's path in the repository."""
    return str(page.relative_to(ROOT))


def typed(page: Path) -> list[Fence]:
    """Return the blocks of a page that tests run."""
    return [
        fence for fence in fences(page) if fence.runs and (fence.language == "sh" or name_of(page) not in ELSEWHERE)
    ]


def script_of(page: Path) -> str:
    """Return the commands of a page in order, after its preparation."""
    commands = [item.body if item.language == "sh" else f"python - <<'END'\n{item.body}END\n" for item in typed(page)]
    script = "\n".join([f'source "{Path(__file__).with_name("walk.sh")}"', *already("".join(commands)), *commands])
    for placeholder, command in (("CHECKPOINT", "spare"), ("TOKEN", "token")):
        script = re.sub(rf"\b{placeholder}\b", f'"$({command})"', script)
    return script


def already(commands: str) -> list[str]:
    """Return the commands that prepare a page: a store, a server, and a job if the page needs its report."""
    if "twofold-trainer init" in commands:
        return []
    made = ["cp -r shop store"]
    if "twofold adapt" in commands and "--watch" in commands:
        made = ["twofold-trainer init --train train.jsonl --dev dev.jsonl --out store"]
    made.append("twofold-server serve --store store")
    if "twofold jobs report" in commands and "twofold adapt" not in commands:
        made += ["twofold adapt --head ner --train new-train.jsonl", "twofold jobs watch || true"]
    return made


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the pages name: example data and a store of checkpoints."""
    root = tmp_path_factory.mktemp("shop")
    tiny_checkpoints.make_store(root / "shop", "a", "b", "c", "d")
    for name in ("", "new-"):
        for part in ("train", "dev"):
            path = ROOT / "examples" / "parcels" / f"{name.replace('new', 'lockers')}{part}.jsonl"
            shutil.copy(path, root / f"{name}{part}.jsonl")
            (root / f"{name}{part}.conll").write_text("\n".join(map(columns, read_examples(path))), encoding="utf-8")
    for name in ("examples", "deploy", "proto"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone with random weights."""
    from support.tiny_models import save_backbone  # Imports torch, which most pages do without.

    return save_backbone("bert", tmp_path_factory.mktemp("backbone"))


def columns(example: Example) -> str:
    """Return an example in CoNLL columns."""
    lines = [f"# label: {example.label}"] if example.label else []
    for word in re.finditer(r"\w+|[^\w\s]+", example.text):
        span = next((item for item in example.entities or () if item.start <= word.start() < item.end), None)
        tag = "O" if span is None else f"{'B' if span.start == word.start() else 'I'}-{span.type}"
        lines.append(f"{word.group()} {tag}")
    return "\n".join([*lines, ""])


@pytest.mark.parametrize("page", [item for item in PAGES if typed(item)], ids=name_of)
def test_page(page: Path, shop: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every command and example of a page runs unchanged, in order, and succeeds."""
    work = shutil.copytree(shop, tmp_path / "work", symlinks=True)
    gate, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    script = script_of(page).replace("127.0.0.1:8500", gate).replace("127.0.0.1:9500", metrics)
    for file, body in settings_of(page).items():
        (work / file).write_text(body.replace("127.0.0.1:8500", gate))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BROWSER": "true",
        "BACKBONE": str(request.getfixturevalue("backbone")) if "twofold-trainer init" in script else "",
        "RATES": RATES,
        "OMP_NUM_THREADS": "1",
        "TWOFOLD_TRAINER_NICENESS": "0",  # Other tests keep the machine busy.
        "TWOFOLD_TARGET": gate,
        "TWOFOLD_LISTEN": gate,
        "TWOFOLD_METRICS_LISTEN": metrics,
    }
    with (tmp_path / "log").open("w+") as log:
        command = ["bash", "-c", script]
        with subprocess.Popen(
            command, cwd=work, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as shell:
            try:
                code = shell.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(shell.pid, signal.SIGKILL)
                code = -1
        log.seek(0)
        assert code == 0, log.read()[-6000:]


def settings_of(page: Path) -> dict[str, str]:
    """Return the settings files that a page shows, by the names in their first lines."""
    bodies = [fence.body for fence in fences(page) if fence.language == "toml"]
    return {re.findall(r"^# (\w+\.toml)", body)[0]: body for body in bodies}


@pytest.mark.parametrize("page", [item for item in PAGES if settings_of(item)], ids=name_of)
def test_settings(page: Path, tmp_path: Path) -> None:
    """The server accepts every settings file that a page shows."""
    for file, body in settings_of(page).items():
        assert tomllib.loads(body)
        (tmp_path / file).write_text(body)
        resolved_settings(["--config", str(tmp_path / file)], {})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fences(page: Path) -> None:
    """Every block names its language, and a block that is not run needs another service or tool."""
    for fence in fences(page):
        assert fence.language, fence.body
        if fence.language == "sh" and not fence.runs:
            lines = fence.body.replace("\\\n", " ").splitlines()
            assert {line.split()[0] for line in lines} <= OF_OTHERS or "://" in fence.body


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names(page: Path) -> None:
    """Every make target and `twofold` command in the text of a page exists."""
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+[a-z])\b", text, re.MULTILINE)) <= targets
    for words in re.findall(r"(?:`|^)twofold (?:--json |--\S+ \S+ )?([a-z-]+(?: [a-z-]+)?)", text, re.MULTILINE):
        command: click.Command = app
        for word in words.split():
            if isinstance(command, click.Group):
                command = command.commands[word]
        assert not isinstance(command, click.Group), f"twofold {words} is a group; name one of its commands"

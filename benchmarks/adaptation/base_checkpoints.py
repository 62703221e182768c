"""The base checkpoint of a scenario, trained once and shared by all scenarios with the same base."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
from twofold_checkpoint.checkpoint import TRAINING_WEIGHTS, Checkpoint
from twofold_checkpoint.examples import Example, write_examples
from twofold_checkpoint.store import Store

from benchmarks.adaptation.scenarios import Base, gather
from benchmarks.adaptation.sizes import Size
from benchmarks.processes import run_command


@dataclass(frozen=True, slots=True)
class BasePlan:
    """Hold a base's training data and the trainer's extra arguments."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    arguments: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The first sixteen hexadecimal digits of the SHA-256 of the data and the arguments."""
        return hashlib.sha256(msgspec.json.encode((self.arguments, self.train, self.dev))).hexdigest()[:16]


def plan_base(root: Path, base: Base, size: Size, *, seed: int) -> BasePlan:
    """Gather a base's examples."""
    arguments = ["--seed", str(seed)]
    if size.base_epochs is not None:
        arguments += ["--epochs", str(size.base_epochs)]
    return BasePlan(
        train=gather(root, base.train, size.base.train_first),
        dev=gather(root, base.dev, size.base.dev_first),
        arguments=tuple(arguments),
    )


def ensure_base(plan: BasePlan, work: Path) -> Checkpoint:
    """Return the base checkpoint; train it with `twofold-trainer init` if it is missing. Raises RuntimeError.

    Training uses one thread, because sums over several threads differ: methods measured on different machines should
    start from the same bytes.
    """
    folder = work / plan.digest
    store = Store(folder / "store")
    if store.aliases().current is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_examples(folder / "train.jsonl", plan.train)
        write_examples(folder / "dev.jsonl", plan.dev)
        command = [sys.executable, "-m", "twofold_trainer", "init", "--threads", "1", "--out", str(store.root)]
        data = ["--train", str(folder / "train.jsonl"), "--dev", str(folder / "dev.jsonl")]
        run_command([*command, *plan.arguments, *data])
    return store.get("current")


def digest_weights(base: Checkpoint) -> str:
    """Return the first sixteen hexadecimal digits of the SHA-256 of a base's weights."""
    return hashlib.sha256((base.path / TRAINING_WEIGHTS).read_bytes()).hexdigest()[:16]

"""The checkpoint that a scenario starts from: trained once for all scenarios with the same base, then kept."""

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
from benchmarks.processes import run


@dataclass(frozen=True, slots=True)
class BasePlan:
    """Hold what a base is trained on, and the trainer's arguments beside its defaults."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    arguments: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over everything that the base depends on, beside the code."""
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
    """Return the base's checkpoint; `twofold-trainer init` trains it if it is not there. Raises RuntimeError.

    With one thread, whatever the machine has: sums of several threads come out otherwise, and rows that were measured in
    different sessions should start from the same bytes.
    """
    own = work / plan.digest
    store = Store(own / "store")
    if store.aliases().current is None:
        own.mkdir(parents=True, exist_ok=True)
        write_examples(own / "train.jsonl", plan.train)
        write_examples(own / "dev.jsonl", plan.dev)
        command = [sys.executable, "-m", "twofold_trainer", "init", "--threads", "1", "--out", str(own / "store")]
        run([*command, *plan.arguments, "--train", str(own / "train.jsonl"), "--dev", str(own / "dev.jsonl")])
    return store.get("current")


def digest_weights(base: Checkpoint) -> str:
    """Return sixteen hexadecimal digits over the weights that a base came to."""
    return hashlib.sha256((base.path / TRAINING_WEIGHTS).read_bytes()).hexdigest()[:16]

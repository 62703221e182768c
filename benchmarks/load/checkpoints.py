"""The checkpoints that are called: trained on the project's own example, once."""

from __future__ import annotations

import sys
from pathlib import Path

from twofold_checkpoint.store import Store

from benchmarks.processes import ROOT, run_command

EXAMPLES = ROOT / "examples" / "parcels"


def prepare(work: Path) -> list[str]:
    """Train two checkpoints that differ in their seed, once, and return their ids, the current one first."""
    store = work / "store"
    for seed in range(2):
        if not (work / f"trained-{seed}").exists():
            command = [sys.executable, "-m", "twofold_trainer", "init", "--out", str(store), "--seed", str(seed)]
            run_command([*command, "--train", str(EXAMPLES / "train.jsonl"), "--dev", str(EXAMPLES / "dev.jsonl")])
            (work / f"trained-{seed}").touch()
    current = Store(store).get("current").id
    return sorted((checkpoint.id for checkpoint in Store(store).list()), key=lambda one: one != current)

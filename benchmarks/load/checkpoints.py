"""The checkpoints under load: trained once on the parcel example."""

from __future__ import annotations

import sys
from pathlib import Path

from twofold_checkpoint.store import Store

from benchmarks.processes import ROOT, run_command

EXAMPLES = ROOT / "examples" / "parcels"


def train_checkpoints(work: Path) -> list[str]:
    """Train two checkpoints with different seeds in *work*/store, once, and return their ids, the current one first."""
    work.mkdir(parents=True, exist_ok=True)
    store = Store(work / "store")
    for seed in range(2):
        marker = work / f"trained-{seed}"
        if not marker.exists():
            command = [sys.executable, "-m", "twofold_trainer", "init", "--out", str(store.root), "--seed", str(seed)]
            run_command([*command, "--train", str(EXAMPLES / "train.jsonl"), "--dev", str(EXAMPLES / "dev.jsonl")])
            marker.touch()
    current = store.get("current").id
    return sorted((checkpoint.id for checkpoint in store.list()), key=lambda checkpoint_id: checkpoint_id != current)

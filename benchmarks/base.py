"""Measure the quality of a first checkpoint: `twofold-trainer init` with defaults, scored by an independent program.

    python -m benchmarks.base --sets DIRECTORY --scorer SCORE.py [--work DIRECTORY]

DIRECTORY holds snips/ and hwu64/, each with train.jsonl, dev.jsonl and test.jsonl. The answers come from a running server. A
checkpoint that already exists in --work is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from twofold_server.testing import serving

from benchmarks import report
from benchmarks.processes import Cost, run_command

SETS = ("snips", "hwu64")
NAMES = {"snips": ("snips_intent_accuracy", "snips_slot_f1"), "hwu64": ("hwu64_intent_accuracy", "hwu64_entity_f1")}


def train(source: Path, work: Path, seed: int) -> Cost:
    """Train a first checkpoint and return the cost, or read the cost of an earlier training."""
    cost_file = work / "cost.json"
    if cost_file.exists():
        return Cost(**json.loads(cost_file.read_text(encoding="utf-8")))
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "twofold_trainer", "init", "--out", str(work / "store"), "--seed", str(seed)]
    cost = run_command([*command, "--train", str(source / "train.jsonl"), "--dev", str(source / "dev.jsonl")])
    cost_file.write_text(json.dumps(dataclasses.asdict(cost)), encoding="utf-8")
    return cost


def predict(source: Path, work: Path) -> Path:
    """Predict the test texts with a running server and the command-line client."""
    predictions = work / "predictions.jsonl"
    with serving(work / "store", log=work / "server.log") as server:
        command = [sys.executable, "-m", "twofold.cli", "--target", server.target, "predict"]
        run_command([*command, "--input", str(source / "test.jsonl"), "--output", str(predictions)])
    return predictions


def main() -> None:
    """Train, predict and score both sets, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".work/base"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    scores = {}
    for name in SETS:
        source, work = arguments.sets / name, arguments.work / f"{name}-{arguments.seed}"
        cost = train(source, work, arguments.seed)
        predictions = predict(source, work)
        command = [sys.executable, str(arguments.scorer), "gold", str(source / "test.jsonl"), str(predictions)]
        scored = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        accuracy, f1 = NAMES[name]
        figures[accuracy] = round(100 * scored["classifier"]["accuracy"], 2)
        figures[f1] = round(100 * scored["ner"]["f1"], 2)
        figures[f"{name}_train_seconds"] = round(cost.seconds, 1)
        figures[f"{name}_train_cpu_seconds"] = round(cost.cpu_seconds, 1)
        figures[f"{name}_peak_memory_mib"] = round(cost.peak_mib)
        scores[name] = scored
    report.write("base", settings={"seed": arguments.seed, "init": "defaults"}, figures=figures, scores=scores)


if __name__ == "__main__":
    main()

"""What serving costs over the bare model: a loop of tokenizer, ONNX Runtime and decoding, and the server, in turns.

    python -m benchmarks.serving --sets DIRECTORY [--rounds 3] [--seconds 5] [--work DIRECTORY]

DIRECTORY holds the test sets: short commands and sentences of abstracts, measured one after the other. The loop takes the
batch size that is best for it on this machine; it is also run with the server's own way of cutting batches by length, so
that one sees what the server adds and what it saves. Caller, loop and server are processes of their own and share the cores;
CPU seconds are counted for each. Every ratio is one of two neighbours in time, and the median over the rounds is told;
a figure is that of the text set on which the server does worse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from twofold_checkpoint.store import Store
from twofold_server.testing import Server, serving

from benchmarks import report
from benchmarks.load.checkpoints import train_checkpoints
from benchmarks.load.texts import SETS, read_texts
from benchmarks.processes import run_json

BATCHES = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Load:
    """One way to call: how many texts a call carries, and how many calls are out at once."""

    name: str
    size: int
    in_flight: int


LOADS = (Load("batch", 32, 8), Load("single_64", 1, 64), Load("single_8", 1, 8), Load("single_1", 1, 1))


def read_tokens(server: Server) -> dict[str, float]:
    """Read how many tokens the server has computed, of text and of padding."""
    with urllib.request.urlopen(server.metrics_url) as answer:  # noqa: S310 -- our own server.
        lines = answer.read().decode()
    return {kind: float(value) for kind, value in re.findall(r'twofold_tokens_total\{kind="(\w+)"\} (\S+)', lines)}


def call(server: Server, texts: Path, load: Load, seconds: float) -> dict[str, Any]:
    """Put a load on the server and say what each side saw and spent."""
    process = psutil.Process(server.pid)
    before, tokens = process.cpu_times(), read_tokens(server)
    called = run_json(
        "load.load_generator", "--target", server.target, "--texts", texts, "--in-flight", load.in_flight, "--size", load.size,
        "--seconds", seconds,
    )  # fmt: skip
    after, all_tokens = process.cpu_times(), read_tokens(server)
    if called["codes"]:
        raise RuntimeError(f"calls failed: {called['codes']}")
    cpu = after.user + after.system - before.user - before.system
    spent = {kind: all_tokens[kind] - tokens.get(kind, 0.0) for kind in all_tokens}
    return {
        "per_second": called["texts"] / called["seconds"],
        "cpu_ms": 1000 * cpu / called["all_texts"],
        "caller_cpu_ms": 1000 * called["cpu_seconds"] / called["all_texts"],
        "padding": spent["padding"] / (spent["padding"] + spent["text"]),
        **{name: called[name] for name in ("p50_ms", "p95_ms", "p99_ms")},
    }


def loop(checkpoint: Path, texts: Path, batch: int, seconds: float, *, split: bool = False) -> dict[str, Any]:
    """Run the bare loop."""
    threads = len(os.sched_getaffinity(0))
    options = (
        "--checkpoint",
        checkpoint,
        "--texts",
        texts,
        "--batch",
        batch,
        "--threads",
        threads,
        "--seconds",
        seconds,
    )
    looped = run_json("load.bare_loop", *options, *(["--split"] if split else []))
    return {
        "per_second": looped["texts"] / looped["seconds"],
        "cpu_ms": 1000 * looped["cpu_seconds"] / looped["texts"],
    }


def measure(server: Server, checkpoint: Path, texts: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the loop and the server take turns over one set of texts."""
    trials = {batch: loop(checkpoint, texts, batch, arguments.seconds / 2) for batch in BATCHES}
    best = max(trials, key=lambda batch: trials[batch]["per_second"])
    rounds = []
    for number in range(arguments.rounds):
        bare = loop(checkpoint, texts, best, arguments.seconds)
        cut = loop(checkpoint, texts, max(BATCHES), arguments.seconds, split=True)
        loads = {load.name: call(server, texts, load, arguments.seconds) for load in LOADS}
        rounds.append({"bare": bare, "cut": cut, **loads})
        print(f"round {number + 1}: bare {bare['per_second']:.0f} texts/s, " + ", ".join(
            f"{name} {one['per_second'] / bare['per_second']:.2f} at {one['cpu_ms'] / bare['cpu_ms']:.2f} of the CPU"
            for name, one in loads.items()
        ), file=sys.stderr, flush=True)  # fmt: skip
    medians = {
        name: {key: round(statistics.median(one[name][key] for one in rounds), 3) for key in rounds[0][name]}
        for name in rounds[0]
    }
    ratios = {
        f"{name}_over_{other}": {
            key: round(statistics.median(one[name][key] / one[other][key] for one in rounds), 3)
            for key in ("per_second", "cpu_ms")
        }
        for name in ("cut", *(load.name for load in LOADS))
        for other in ("bare", "cut")
        if name != other
    }
    trial_rates = {str(batch): round(one["per_second"], 1) for batch, one in trials.items()}
    return {"best_batch": best, "trials": trial_rates, "medians": medians, "ratios": ratios}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = Store(arguments.work / "store").get(train_checkpoints(arguments.work)[0])
    sets = {}
    with tempfile.TemporaryDirectory() as scratch, serving(checkpoint.path.parent.parent) as server:
        for name in SETS:
            texts = Path(scratch) / f"{name}.json"
            texts.write_text(json.dumps(read_texts(arguments.sets, (name,))), encoding="utf-8")
            print(name, file=sys.stderr)
            sets[name] = measure(server, checkpoint.path, texts, arguments)
    ratios = [one["ratios"] for one in sets.values()]
    figures = {
        "batch_throughput_ratio": min(one["batch_over_bare"]["per_second"] for one in ratios),
        "batch_cpu_ratio": max(one["batch_over_bare"]["cpu_ms"] for one in ratios),
        "single_throughput_ratio": min(one["single_64_over_bare"]["per_second"] for one in ratios),
        "single_cpu_ratio": max(one["single_64_over_bare"]["cpu_ms"] for one in ratios),
    }
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds, "loads": [load.name for load in LOADS]}
    report.write("serving", settings=settings, figures=figures, sets=sets)


if __name__ == "__main__":
    main()

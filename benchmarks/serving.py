"""Measure the overhead of the server over a bare loop of tokenizer, ONNX Runtime and decoding.

    python -m benchmarks.serving --sets DIRECTORY [--rounds 3] [--seconds 5] [--work DIRECTORY]

DIRECTORY holds the test sets: short commands and sentences from abstracts, measured separately. The loop uses its best batch
size on this machine. It also runs with the server's splitting of batches by length, to separate what the server costs from
what it saves. Load generator, loop and server are separate processes that share the cores, and their CPU seconds are counted
separately. Ratios compare measurements of the same round; the result is their median over the rounds. Each figure is that of
the text set with the larger overhead.
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
    """A load: the number of texts per call, and of calls in flight."""

    name: str
    size: int
    in_flight: int


LOADS = (Load("batch", 32, 8), Load("single_64", 1, 64), Load("single_8", 1, 8), Load("single_1", 1, 1))


def read_tokens(server: Server) -> dict[str, float]:
    """Return the numbers of text and padding tokens that the server has computed."""
    with urllib.request.urlopen(server.metrics_url) as response:  # noqa: S310 -- a server on this machine.
        lines = response.read().decode()
    return {kind: float(value) for kind, value in re.findall(r'twofold_tokens_total\{kind="(\w+)"\} (\S+)', lines)}


def send_load(server: Server, texts: Path, load: Load, seconds: float) -> dict[str, Any]:
    """Send a load to the server and return rate, latencies, padding and CPU time of both sides."""
    process = psutil.Process(server.pid)
    cpu_before, tokens_before = process.cpu_times(), read_tokens(server)
    result = run_json(
        "load.load_generator", "--target", server.target, "--texts", texts, "--in-flight", load.in_flight, "--size", load.size,
        "--seconds", seconds,
    )  # fmt: skip
    cpu_after, tokens_after = process.cpu_times(), read_tokens(server)
    if result["codes"]:
        raise RuntimeError(f"calls failed: {result['codes']}")
    cpu = cpu_after.user + cpu_after.system - cpu_before.user - cpu_before.system
    tokens = {kind: count - tokens_before.get(kind, 0.0) for kind, count in tokens_after.items()}
    return {
        "per_second": result["texts"] / result["seconds"],
        "cpu_ms": 1000 * cpu / result["all_texts"],
        "caller_cpu_ms": 1000 * result["cpu_seconds"] / result["all_texts"],
        "padding": tokens["padding"] / (tokens["padding"] + tokens["text"]),
        **{name: result[name] for name in ("p50_ms", "p95_ms", "p99_ms")},
    }


def run_bare_loop(checkpoint: Path, texts: Path, batch: int, seconds: float, *, split: bool = False) -> dict[str, Any]:
    """Run the bare loop."""
    threads = len(os.sched_getaffinity(0))
    options = ["--checkpoint", checkpoint, "--texts", texts, "--batch", batch, "--threads", threads]
    options += ["--seconds", seconds, *(["--split"] if split else [])]
    result = run_json("load.bare_loop", *options)
    return {
        "per_second": result["texts"] / result["seconds"],
        "cpu_ms": 1000 * result["cpu_seconds"] / result["texts"],
    }


def measure(server: Server, checkpoint: Path, texts: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the loop and the server in interleaved rounds over one set of texts."""
    trials = {batch: run_bare_loop(checkpoint, texts, batch, arguments.seconds / 2) for batch in BATCHES}
    best = max(trials, key=lambda batch: trials[batch]["per_second"])
    rounds = []
    for number in range(arguments.rounds):
        bare_loop = run_bare_loop(checkpoint, texts, best, arguments.seconds)
        split_loop = run_bare_loop(checkpoint, texts, max(BATCHES), arguments.seconds, split=True)
        loads = {load.name: send_load(server, texts, load, arguments.seconds) for load in LOADS}
        rounds.append({"bare_loop": bare_loop, "split_loop": split_loop, **loads})
        print(f"round {number + 1}: bare loop {bare_loop['per_second']:.0f} texts/s, " + ", ".join(
            f"{name} {result['per_second'] / bare_loop['per_second']:.2f} at "
            f"{result['cpu_ms'] / bare_loop['cpu_ms']:.2f} of the CPU time" for name, result in loads.items()
        ), file=sys.stderr, flush=True)  # fmt: skip
    medians = {
        name: {key: round(statistics.median(entry[name][key] for entry in rounds), 3) for key in rounds[0][name]}
        for name in rounds[0]
    }
    ratios = {
        f"{name}_over_{reference}": {
            key: round(statistics.median(entry[name][key] / entry[reference][key] for entry in rounds), 3)
            for key in ("per_second", "cpu_ms")
        }
        for name in ("split_loop", *(load.name for load in LOADS))
        for reference in ("bare_loop", "split_loop")
        if name != reference
    }
    trial_rates = {str(batch): round(trial["per_second"], 1) for batch, trial in trials.items()}
    return {"best_batch": best, "trials": trial_rates, "medians": medians, "ratios": ratios}


def main() -> None:
    """Measure both text sets and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    checkpoint = Store(arguments.work / "store").get(train_checkpoints(arguments.work)[0])
    sets = {}
    with tempfile.TemporaryDirectory() as scratch, serving(checkpoint.path.parent.parent) as server:
        for name in SETS:
            texts = Path(scratch) / f"{name}.json"
            texts.write_text(json.dumps(read_texts(arguments.sets, (name,))), encoding="utf-8")
            print(name, file=sys.stderr)
            sets[name] = measure(server, checkpoint.path, texts, arguments)
    ratios = [measured["ratios"] for measured in sets.values()]
    figures = {
        "batch_throughput_ratio": min(ratio["batch_over_bare_loop"]["per_second"] for ratio in ratios),
        "batch_cpu_ratio": max(ratio["batch_over_bare_loop"]["cpu_ms"] for ratio in ratios),
        "single_throughput_ratio": min(ratio["single_64_over_bare_loop"]["per_second"] for ratio in ratios),
        "single_cpu_ratio": max(ratio["single_64_over_bare_loop"]["cpu_ms"] for ratio in ratios),
    }
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds, "loads": [load.name for load in LOADS]}
    report.write("serving", settings=settings, figures=figures, sets=sets)


if __name__ == "__main__":
    main()

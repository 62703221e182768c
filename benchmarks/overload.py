"""What a server does with more than it can do: calls at three times its capacity.

    python -m benchmarks.overload --sets DIRECTORY [--times 3] [--seconds 20] [--max-wait-ms 500] [--work DIRECTORY]

Capacity is what 64 single-text calls in flight are answered in a second by a server that refuses nothing, measured before
and after. Then another one, which has --max-wait-ms, is sent calls at a fixed rate, whatever becomes of them. Goodput is what
is still answered, and no answer should take longer than that limit. Two calls are refused for each answer, and to refuse
one takes a tenth of what a text of HWU64 takes: no more than three quarters of the capacity can be left of its short texts
(ADR 36). The sets of texts differ in what a call costs beside its text: HWU64's are commands of 7 words, NCBI's
sentences of 26. The figures without a suffix are HWU64's.

The server has one half of the cores and the caller the other, as callers are elsewhere: on the same cores a caller that sends
three times as much takes three times the CPU from the server, and is late itself. --together lets them share all cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from twofold import Client, Health
from twofold_checkpoint.store import Store
from twofold_server.testing import Server, serving

from benchmarks import report
from benchmarks.load.checkpoints import train_checkpoints
from benchmarks.load.texts import SETS, read_texts
from benchmarks.processes import run_json

RIGHT = "RESOURCE_EXHAUSTED with RetryInfo"

IN_FLIGHT = 64
"""Calls at a time that show the capacity."""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--max-wait-ms", type=float, default=500.0)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = Store(arguments.work / "store")
    train_checkpoints(arguments.work)
    figures: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for name in SETS:
        flooding = flood(store.root, read_texts(arguments.sets, (name,)), arguments)
        measured[name] = flooding
        suffix = "" if name == SETS[0] else f"_{name}"
        figures |= {f"{key}{suffix}": value for key, value in judge(flooding, arguments.max_wait_ms).items()}
    settings = {
        "together": arguments.together,
        "times": arguments.times,
        "seconds": arguments.seconds,
        "max_wait_ms": arguments.max_wait_ms,
    }
    report.write("overload", settings=settings, figures=figures, sets=measured)


@contextlib.contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Let what is started in the block keep to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def shares(together: bool) -> tuple[set[int], set[int]]:
    """Return the cores of the server and those of the caller."""
    cores = sorted(os.sched_getaffinity(0))
    if together or len(cores) == 1:
        return set(cores), set(cores)
    return set(cores[: len(cores) // 2]), set(cores[len(cores) // 2 :])


def flood(store: Path, texts: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the capacity of a server, send more than that to one that refuses calls, and measure the capacity again."""
    before = capacity(store, texts, arguments)
    with called(store, texts, arguments, "--max-wait-ms", arguments.max_wait_ms) as (server, client, call):
        call(1, "--in-flight", IN_FLIGHT)  # Pages of memory that the first passes take are no growth.
        process = psutil.Process(server.pid)
        rss = process.memory_info().rss
        cpu = sum(process.cpu_times()[:2])
        flooded = call(arguments.seconds, "--rate", round(arguments.times * before, 1))
        cpu = sum(process.cpu_times()[:2]) - cpu
        growth, healthy = process.memory_info().rss / rss, client.health() is Health.SERVING
    return {
        "flooded": flooded | {"server_cpu_seconds": round(cpu, 1)},
        "serving": healthy,
        "rss_growth": round(growth, 3),
        "capacities": [before, capacity(store, texts, arguments)],
    }


def capacity(store: Path, texts: list[str], arguments: argparse.Namespace) -> float:
    """Return how many texts a second are answered where none is refused."""
    with called(store, texts, arguments, "--max-wait-ms", 0) as (_, _, call):
        found = call(arguments.seconds / 2, "--in-flight", IN_FLIGHT)
        return round(float(found["texts"] / found["seconds"]), 1)


@contextlib.contextmanager
def called(
    store: Path, texts: list[str], arguments: argparse.Namespace, *flags: object
) -> Iterator[tuple[Server, Client, Callable[..., dict[str, Any]]]]:
    """Run a server on its share of the cores; yield it, a client, and what calls it from the others."""
    servers, callers = shares(arguments.together)
    with contextlib.ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        with on(servers):
            server = stack.enter_context(serving(store, *map(str, flags)))
        client = stack.enter_context(Client(server.target))
        stack.enter_context(on(callers))

        def call(seconds: float, *load: object) -> dict[str, Any]:
            return run_json(
                "load.load_generator", "--target", server.target, "--texts", file, "--seconds", seconds, *load
            )

        yield server, client, call


def judge(measured: dict[str, Any], max_wait_ms: float) -> dict[str, float]:
    """Return the figures of a flood."""
    flooded, mean = measured["flooded"], sum(measured["capacities"]) / 2
    refused = sum(flooded["codes"].values())
    return {
        "goodput_ratio": round(flooded["texts"] / flooded["seconds"] / mean, 3),
        "right_code_ratio": round(flooded["codes"].get(RIGHT, 0) / refused, 4) if refused else 0.0,
        "p99_ms": round(flooded["p99_ms"], 1),
        "p99_bound_ms": max_wait_ms,
        "serving": float(measured["serving"]),
        "rss_growth": measured["rss_growth"],
    }


if __name__ == "__main__":
    main()

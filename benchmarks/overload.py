"""Measure goodput, rejections and latency of a server that receives three times its capacity.

    python -m benchmarks.overload --sets DIRECTORY [--times 3] [--seconds 20] [--max-wait-ms 500] [--work DIRECTORY]

Capacity is the rate at which a server without admission control answers single-text calls with 64 in flight, measured before
and after. Then a server with --max-wait-ms receives calls at a fixed rate (an open loop). Goodput is the rate of answers; no
answer should take longer than the limit. There are two rejections per answer, each at a tenth of the cost of an HWU64 text, so
at most three quarters of the capacity can be answered for such short texts (ADR 36). HWU64's texts are commands of 7 words on
average, NCBI's are sentences of 26. Figures without a suffix are HWU64's.

Server and load generator each have half of the cores, as if on separate machines: on shared cores the load generator would
take CPU time from the server and fall behind its schedule. --together lets them share all cores.
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

EXPECTED_FAILURE = "RESOURCE_EXHAUSTED with RetryInfo"

IN_FLIGHT = 64
"""Calls in flight when the capacity is measured."""


def main() -> None:
    """Measure both text sets and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--max-wait-ms", type=float, default=500.0)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    store = Store(arguments.work / "store")
    train_checkpoints(arguments.work)
    figures: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for name in SETS:
        measured[name] = overload(store.root, read_texts(arguments.sets, (name,)), arguments)
        suffix = "" if name == SETS[0] else f"_{name}"
        figures |= {
            f"{key}{suffix}": value for key, value in compute_figures(measured[name], arguments.max_wait_ms).items()
        }
    settings = {
        "together": arguments.together,
        "times": arguments.times,
        "seconds": arguments.seconds,
        "max_wait_ms": arguments.max_wait_ms,
    }
    report.write("overload", settings=settings, figures=figures, sets=measured)


@contextlib.contextmanager
def pinned_to(cores: set[int]) -> Iterator[None]:
    """Pin processes that start in the block to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def split_cores(together: bool) -> tuple[set[int], set[int]]:
    """Return the cores of the server and those of the load generator."""
    cores = sorted(os.sched_getaffinity(0))
    if together or len(cores) == 1:
        return set(cores), set(cores)
    return set(cores[: len(cores) // 2]), set(cores[len(cores) // 2 :])


def overload(store: Path, texts: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the capacity, overload a server with admission control, and measure the capacity again."""
    before = capacity(store, texts, arguments)
    with started(store, texts, arguments, "--max-wait-ms", arguments.max_wait_ms) as (server, client, call):
        call(1, "--in-flight", IN_FLIGHT)  # The memory of the first passes does not count as growth.
        process = psutil.Process(server.pid)
        rss = process.memory_info().rss
        cpu = sum(process.cpu_times()[:2])
        overloaded = call(arguments.seconds, "--rate", round(arguments.times * before, 1))
        cpu = sum(process.cpu_times()[:2]) - cpu
        growth, healthy = process.memory_info().rss / rss, client.health() is Health.SERVING
    return {
        "overloaded": overloaded | {"server_cpu_seconds": round(cpu, 1)},
        "serving": healthy,
        "rss_growth": round(growth, 3),
        "capacities": [before, capacity(store, texts, arguments)],
    }


def capacity(store: Path, texts: list[str], arguments: argparse.Namespace) -> float:
    """Return the texts answered per second without admission control."""
    with started(store, texts, arguments, "--max-wait-ms", 0) as (_, _, call):
        result = call(arguments.seconds / 2, "--in-flight", IN_FLIGHT)
        return round(float(result["texts"] / result["seconds"]), 1)


@contextlib.contextmanager
def started(
    store: Path, texts: list[str], arguments: argparse.Namespace, *flags: object
) -> Iterator[tuple[Server, Client, Callable[..., dict[str, Any]]]]:
    """Run a server on its cores; yield it, a client, and a function that sends load from the client cores."""
    server_cores, client_cores = split_cores(arguments.together)
    with contextlib.ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        with pinned_to(server_cores):
            server = stack.enter_context(serving(store, *map(str, flags)))
        client = stack.enter_context(Client(server.target))
        stack.enter_context(pinned_to(client_cores))

        def call(seconds: float, *load: object) -> dict[str, Any]:
            return run_json(
                "load.load_generator", "--target", server.target, "--texts", file, "--seconds", seconds, *load
            )

        yield server, client, call


def compute_figures(measured: dict[str, Any], max_wait_ms: float) -> dict[str, float]:
    """Return the figures of an overload."""
    overloaded, mean = measured["overloaded"], sum(measured["capacities"]) / 2
    rejected = sum(overloaded["codes"].values())
    return {
        "goodput_ratio": round(overloaded["texts"] / overloaded["seconds"] / mean, 3),
        "right_code_ratio": round(overloaded["codes"].get(EXPECTED_FAILURE, 0) / rejected, 4) if rejected else 0.0,
        "p99_ms": round(overloaded["p99_ms"], 1),
        "p99_bound_ms": max_wait_ms,
        "serving": float(measured["serving"]),
        "rss_growth": measured["rss_growth"],
    }


if __name__ == "__main__":
    main()

"""What a server does with more than it can do: calls at three times its capacity.

    python benchmarks/overload.py --sets DIRECTORY [--times 3] [--seconds 20] [--max-requests 64] [--work DIRECTORY]

Capacity is what a closed loop of as many single-text calls as the server lets in is answered in a second, measured before
and after. Then calls are sent at a fixed rate, whatever becomes of them. Goodput is what is still answered. What waits is
bounded by --max-requests: an answer waits for the batch before its own and then for its own, which hold no more than that
many texts together and each. To send a call away takes 0.42 ms of a core in grpcio's asyncio server alone, and 0.55 ms in
ours, where a text of HWU64 takes 4.3 ms: with two refusals for each answer no more than 0.78 of the capacity could be left of
its short texts. The sets of texts differ in what a call costs beside its text: HWU64's are commands of 7 words, NCBI's
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import report
from calling.processes import run_json
from calling.texts import SETS, read_texts
from calling.trained import prepare
from twofold import Client, Health
from twofold_checkpoint.store import Store
from twofold_server.testing import serving

RIGHT = "RESOURCE_EXHAUSTED with RetryInfo"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--max-requests", type=int, default=64)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = Store(arguments.work / "store")
    prepare(arguments.work)
    figures: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for name in SETS:
        flooding = flood(store.root, read_texts(arguments.sets, (name,)), arguments)
        measured[name] = flooding
        suffix = "" if name == SETS[0] else f"_{name}"
        figures |= {f"{key}{suffix}": value for key, value in judge(flooding, arguments.max_requests).items()}
    settings = {
        "together": arguments.together,
        "times": arguments.times,
        "seconds": arguments.seconds,
        "max_requests": arguments.max_requests,
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
    """Measure the capacity of a server, send more than that, and measure it again."""
    servers, callers = shares(arguments.together)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        with on(servers):
            server = stack.enter_context(serving(store, "--max-requests", str(arguments.max_requests)))
        client = stack.enter_context(Client(server.target))
        stack.enter_context(on(callers))
        file = Path(scratch) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        process = psutil.Process(server.pid)

        def call(seconds: float, *load: object) -> dict[str, Any]:
            return run_json("caller.py", "--target", server.target, "--texts", file, "--seconds", seconds, *load)

        def capacity() -> float:
            called = call(arguments.seconds / 2, "--in-flight", arguments.max_requests)
            return round(float(called["texts"] / called["seconds"]), 1)

        before = capacity()
        rss = process.memory_info().rss
        cpu = sum(process.cpu_times()[:2])
        flooded = call(arguments.seconds, "--rate", round(arguments.times * before, 1))
        return {
            "flooded": flooded | {"server_cpu_seconds": round(sum(process.cpu_times()[:2]) - cpu, 1)},
            "serving": client.health() is Health.SERVING,
            "rss_growth": round(process.memory_info().rss / rss, 3),
            "capacities": [before, capacity()],
        }


def judge(measured: dict[str, Any], max_requests: int) -> dict[str, float]:
    """Return the figures of a flood."""
    flooded, mean = measured["flooded"], sum(measured["capacities"]) / 2
    refused = sum(flooded["codes"].values())
    return {
        "goodput_ratio": round(flooded["texts"] / flooded["seconds"] / mean, 3),
        "right_code_ratio": round(flooded["codes"].get(RIGHT, 0) / refused, 4) if refused else 0.0,
        "p99_ms": round(flooded["p99_ms"], 1),
        "p99_bound_ms": round(1000 * max_requests / mean, 1),
        "serving": float(measured["serving"]),
        "rss_growth": measured["rss_growth"],
    }


if __name__ == "__main__":
    main()

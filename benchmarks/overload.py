"""What a server does with more than it can do: calls at three times its capacity.

    python benchmarks/overload.py --sets DIRECTORY [--times 3] [--seconds 20] [--max-requests 64] [--work DIRECTORY]

Capacity is what a closed loop of as many single-text calls as the server lets in is answered in a second, measured before
and after. Then calls are sent at a fixed rate, whatever becomes of them. Goodput is what is still answered. What waits is
bounded by --max-requests, so an answer takes at most about that many times what one takes at capacity.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import psutil
import report
from calling.processes import run_json
from calling.texts import read_texts
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
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = Store(arguments.work / "store")
    prepare(arguments.work)
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(store.root, "--max-requests", str(arguments.max_requests)) as server,
        Client(server.target) as client,
    ):
        texts = Path(scratch) / "texts.json"
        texts.write_text(json.dumps(read_texts(arguments.sets, ("hwu64",))), encoding="utf-8")
        process = psutil.Process(server.pid)

        def call(seconds: float, *load: object) -> dict[str, Any]:
            return run_json("caller.py", "--target", server.target, "--texts", texts, "--seconds", seconds, *load)

        def capacity() -> float:
            called = call(arguments.seconds / 2, "--in-flight", arguments.max_requests)
            return float(called["texts"] / called["seconds"])

        capacities = [capacity()]
        rss = process.memory_info().rss
        flooded = call(arguments.seconds, "--rate", round(arguments.times * capacities[0], 1))
        healthy = client.health() is Health.SERVING
        growth = process.memory_info().rss / rss
        capacities.append(capacity())
    mean = sum(capacities) / 2
    refused = sum(flooded["codes"].values())
    figures = {
        "goodput_ratio": round(flooded["texts"] / flooded["seconds"] / mean, 3),
        "right_code_ratio": round(flooded["codes"].get(RIGHT, 0) / refused, 4) if refused else 0.0,
        "p99_ms": round(flooded["p99_ms"], 1),
        "p99_bound_ms": round(1000 * arguments.max_requests / mean, 1),
        "serving": float(healthy),
        "rss_growth": round(growth, 3),
    }
    settings = {"times": arguments.times, "seconds": arguments.seconds, "max_requests": arguments.max_requests}
    capacities = [round(one, 1) for one in capacities]
    report.write("overload", settings=settings, figures=figures, capacities=capacities, flooded=flooded)


if __name__ == "__main__":
    main()

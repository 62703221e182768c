"""Write a benchmark's result to benchmarks/results/NAME.json, and its figures to the last line of output."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Describe the machine, without its name."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }


def write(
    name: str, *, settings: Mapping[str, Any], figures: Mapping[str, float], quiet: bool = False, **more: Any
) -> None:
    """Write the result and print the figures as a line of JSON; *quiet* is for intermediate results."""
    result = {
        "name": name,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": dict(settings),
        "figures": dict(figures),
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    written = RESULTS / f".{name}.json"
    written.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    # Atomic: a full disk or an interrupt keeps the previous result.
    written.replace(RESULTS / f"{name}.json")
    if not quiet:
        print(json.dumps(result["figures"]))

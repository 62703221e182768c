"""Run commands and measure what processes cost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a finished process used: wall-clock seconds, CPU seconds, and peak resident memory in MiB."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def run_command(command: Sequence[str]) -> Cost:
    """Run a command with its output on stderr and return its cost. Raises RuntimeError if it fails."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return Cost(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def run_json(module: str, *arguments: object, python: str | Path = sys.executable) -> dict[str, Any]:
    """Run a module of this package in a separate process and return the JSON object of its last line of output."""
    command = [str(python), "-m", f"benchmarks.{module}", *map(str, arguments)]
    environment = None if str(python) == sys.executable else with_sources("clients/python")
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


def with_sources(*folders: str) -> dict[str, str]:
    """Return an environment in which an interpreter without the project finds this package and some of its folders."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(str(ROOT / folder) for folder in folders)])}


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its living descendants."""
    total = 0.0
    for process in process_tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total

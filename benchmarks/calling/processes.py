"""Run the scripts beside this file, each as a process of its own, and count what processes cost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

CALLING = Path(__file__).parent
CLIENT = CALLING.parent.parent / "clients" / "python"


def run_json(script: str, *arguments: object, python: str | Path = sys.executable) -> dict[str, Any]:
    """Run a script of calling/ and return what its last line says."""
    command = [str(python), str(CALLING / script), *map(str, arguments)]
    # A package's scripts find their neighbours by the path of the benchmarks; an environment of its own lacks the client.
    path = os.pathsep.join([str(CALLING.parent), str(CLIENT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Sum the CPU seconds of a process and its living descendants."""
    total = 0.0
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total

"""Run the scripts beside this file, each as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CALLING = Path(__file__).parent


def run_json(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script of calling/ and return what its last line says."""
    command = [sys.executable, str(CALLING / script), *map(str, arguments)]
    # A package's scripts find their neighbours by the path of the benchmarks.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CALLING.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found

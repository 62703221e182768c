"""A wrapper of the Python interpreter: it runs a module like ``python -m`` and stops at a given point.

The processes under test are the real ones. Some points cannot be observed from outside: for example, a trainer may have left a
phase before its event is read. The wrapper stops the process there, so that the test knows what it was doing when it is killed.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROGRAM = """#!{python}
import sys
sys.path[:0] = {path}
from crash.kill_hook import main
main({directory!r})
"""
ORDER = "stop-at.json"
HIT = "stopped"


def install(directory: Path) -> Path:
    """Write the wrapper for processes that read their stop points from *directory*."""
    program = directory / "python"
    path = [entry for entry in sys.path if entry]
    program.write_text(PROGRAM.format(python=sys.executable, path=path, directory=str(directory)), encoding="utf-8")
    program.chmod(0o755)
    return program


def order(directory: Path, process: str, at: str) -> None:
    """Let the next process of a kind stop at a point, once."""
    (directory / HIT).unlink(missing_ok=True)
    (directory / ORDER).write_text(json.dumps({"process": process, "at": at}), encoding="utf-8")


def read_hit(directory: Path) -> int | None:
    """Return the id of the process that has stopped, or None."""
    try:
        return int((directory / HIT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def main(directory: str) -> None:
    """Run ``python -m MODULE ...``, with the stop installed if it is meant for this process."""
    assert sys.argv[1] == "-m", sys.argv
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    try:
        message = json.loads((Path(directory) / ORDER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = None
    if message and message["process"] == module:
        _install_stop(Path(directory), message["at"])
    runpy.run_module(f"{module}.__main__", run_name="__main__", alter_sys=True)


def _install_stop(directory: Path, at: str) -> None:
    """Install a stop before or after a function, such as "after twofold_checkpoint.store:Store.publish", or after an event."""
    when, _, what = at.partition(" ")

    def stop() -> None:
        (directory / ORDER).unlink()
        written = directory / f"{HIT}.new"
        written.write_text(str(os.getpid()), encoding="utf-8")
        written.rename(directory / HIT)
        while True:
            time.sleep(60)

    if when == "said":
        _stop_after_event(what, stop)
        return
    name, _, path = what.partition(":")
    *owners, last = path.split(".")
    owner: Any = importlib.import_module(name)
    for item in owners:
        owner = getattr(owner, item)
    original: Callable[..., Any] = getattr(owner, last)

    def stopping(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            stop()
        actual = original(*args, **kwargs)
        if when == "after" and not (last == "start_next" and actual is None):  # No job to start is no moment of a job.
            stop()
        return actual

    setattr(owner, last, stopping)


def _stop_after_event(what: str, stop: Callable[[], None]) -> None:
    """Stop after the trainer has written an event of a kind, or the event that starts a phase."""
    run = importlib.import_module("twofold_trainer.adapt")
    original = run.run_job

    def message(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for event in original(*args, **kwargs):
            yield event
            if what in {type(event).__name__, getattr(event, "phase", "")}:
                stop()

    run.run_job = message

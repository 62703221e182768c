"""The interpreter of a victim: it runs a module as ``python -m`` does, and stops dead where it is told to.

The processes under test are the real ones. What a phase or a file cannot be seen at from outside (a trainer is through a
phase before its event has been read) is reached by stopping here, so that whoever kills it knows what it was doing.
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
    """Write the interpreter for victims that take their orders from a directory."""
    program = directory / "python"
    path = [entry for entry in sys.path if entry]
    program.write_text(PROGRAM.format(python=sys.executable, path=path, directory=str(directory)), encoding="utf-8")
    program.chmod(0o755)
    return program


def order(directory: Path, process: str, at: str) -> None:
    """Let the next process of a kind stop at a place, once."""
    (directory / HIT).unlink(missing_ok=True)
    (directory / ORDER).write_text(json.dumps({"process": process, "at": at}), encoding="utf-8")


def read_hit(directory: Path) -> int | None:
    """Return the process that has stopped, if one has."""
    try:
        return int((directory / HIT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def main(directory: str) -> None:
    """Do what ``python -m MODULE ...`` does, with the hook in place if it is meant for this process."""
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
    """Put a stop before or after a function, such as "after twofold_checkpoint.store:Store.publish", or after an event."""
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
    """Stop once an event of a trainer is written: its kind, or the name of the phase that it begins."""
    run = importlib.import_module("twofold_trainer.adapt")
    original = run.run_job

    def message(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for event in original(*args, **kwargs):
            yield event
            if what in {type(event).__name__, getattr(event, "phase", "")}:
                stop()

    run.run_job = message

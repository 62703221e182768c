"""A peer's environment, and its server as a process that ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.peer_servers.catalog import HOME
from benchmarks.peer_servers.settings import Settings
from benchmarks.processes import process_tree, with_sources


def install(name: str, work: Path, python: str | None = None) -> Path:
    """Make the environment of a folder beside this file, once, and return its interpreter."""
    environment, requirements = work / name, HOME / name / "requirements.txt"
    interpreter, done = environment / "bin" / "python", environment / ".done"
    if not done.exists() or done.read_text(encoding="utf-8") != requirements.read_text(encoding="utf-8"):
        subprocess.run([python or sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        done.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return interpreter.absolute()


@contextmanager
def running(
    name: str, python: Path, settings: Settings, ready: Callable[[], None], log: Path, *, patience: float = 90.0
) -> Iterator[int]:
    """Run a peer's server until the block ends, and give its process id once *ready* no longer raises."""
    environment = {**with_sources("checkpoint"), **settings.write()}
    environment["PATH"] = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    command = [str(python), str(HOME / name / "serve.py")]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            _wait(process, ready, patience, log)
            yield process.pid
        finally:
            end(process.pid)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], None], patience: float, log: Path) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            ready()
        except OSError as error:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {process.returncode}; its log is {log}") from None
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer within {patience} s but {error}; the server's log is {log}") from error
            time.sleep(0.5)
        else:
            return


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a server and all that belongs to it until the block ends: it takes nothing from the one that is measured."""
    members = process_tree(pid)
    try:
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def end(pid: int, patience: float = 10.0) -> None:
    """Tell a process to end, wait for it, and end what it leaves behind."""
    try:
        first, *rest = process_tree(pid)
    except psutil.NoSuchProcess:
        return
    first.terminate()
    _, alive = psutil.wait_procs([first], patience)
    # Some servers forget their children.
    _, left = psutil.wait_procs(rest, 1.0)
    alive += left
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, patience)

"""A peer's environment and its server process."""

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
    """Create the environment of a folder in this package, once, and return its interpreter."""
    environment, requirements = work / name, HOME / name / "requirements.txt"
    interpreter, marker = environment / "bin" / "python", environment / ".done"
    if not marker.exists() or marker.read_text(encoding="utf-8") != requirements.read_text(encoding="utf-8"):
        subprocess.run([python or sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        marker.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return interpreter.absolute()


@contextmanager
def running(
    name: str, python: Path, settings: Settings, ready: Callable[[], None], log: Path, *, timeout: float = 90.0
) -> Iterator[int]:
    """Run a peer's server until the block ends, and yield its process id once *ready* no longer raises OSError."""
    environment = {**with_sources("checkpoint"), **settings.write()}
    environment["PATH"] = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    command = [str(python), str(HOME / name / "serve.py")]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            _wait(process, ready, timeout, log)
            yield process.pid
        finally:
            end(process.pid)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], None], timeout: float, log: Path) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            ready()
        except OSError as error:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {process.returncode}; its log is {log}") from None
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer within {timeout} s: {error}; the server's log is {log}") from error
            time.sleep(0.5)
        else:
            return


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Suspend a server's processes until the block ends, so that they do not disturb the measured server."""
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


def end(pid: int, timeout: float = 10.0) -> None:
    """Terminate a process, wait for it, and kill the descendants it leaves behind."""
    try:
        process, *descendants = process_tree(pid)
    except psutil.NoSuchProcess:
        return
    process.terminate()
    _, alive = psutil.wait_procs([process], timeout)
    # Some servers do not terminate their children.
    _, orphans = psutil.wait_procs(descendants, 1.0)
    alive += orphans
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout)

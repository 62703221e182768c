"""Run a real server in a subprocess, for demos, benchmarks and end-to-end tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twofold import Client, Health, TwofoldError


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    pid: int
    target: str
    metrics_url: str


COMMAND = (sys.executable, "-m", "twofold_server")


@contextmanager
def serving(
    store: Path, *flags: str, log: Path | None = None, patience: float = 60.0, command: Sequence[str] = COMMAND
) -> Iterator[Server]:
    """Run a server on a store until the block ends. Send SIGTERM then, and raise RuntimeError unless it exits with 0."""
    target, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    arguments = [*command, "serve", "--store", str(store), "--listen", target, "--metrics-listen", metrics, *flags]
    with (log or Path(os.devnull)).open("wb") as stderr, subprocess.Popen(arguments, stderr=stderr) as process:  # noqa: S603 -- our own command.
        try:
            _wait_until_healthy(process, target, patience)
            yield Server(process.pid, target, f"http://{metrics}/metrics")
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if code:
        raise RuntimeError(f"the server ended with exit code {code}; its log is {log}")


def _wait_until_healthy(process: subprocess.Popen[bytes], target: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    with Client(target) as client:
        while True:
            try:
                if client.health() is Health.SERVING:
                    return
            except TwofoldError:
                pass
            if process.poll() is not None:
                raise RuntimeError(f"the server did not start: exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not healthy within {patience} s")
            time.sleep(0.1)

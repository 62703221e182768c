"""Interleaved rounds: two servers run at once and are measured in turns, while the other one is suspended."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold_checkpoint.checkpoint import Checkpoint

from benchmarks.peer_servers.server_process import suspended
from benchmarks.processes import cpu_seconds, run_json

IN_FLIGHT = 64
CHECKED = 50
"""Texts of each set whose answers are checked."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A running server and how to call it."""

    protocol: str
    target: str
    pid: int


Servers = Mapping[str, RunningServer]
"""The measured servers: "twofold" and "peer"."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Hold what every measurement needs."""

    work: Path
    checkpoint: Checkpoint
    graph: Path
    """Directory of the checkpoint that the peers serve."""
    packed: bool
    texts: Mapping[str, Path]
    expected: Mapping[str, Any]
    """Answers to the first texts of each set."""
    python: Path
    """Interpreter of the load generator."""
    seconds: float
    until: float
    """Time of the monotonic clock after which no measurement starts."""

    def send_load(self, server: RunningServer, texts: str, seconds: float, *load: object) -> dict[str, Any]:
        """Send a load to a server and return rate, latencies and CPU time per text."""
        before = cpu_seconds(server.pid)
        options = ("--target", server.target, "--protocol", server.protocol, "--texts", self.texts[texts])
        result = run_json("load.load_generator", *options, "--seconds", seconds, *load, python=self.python)
        cpu = cpu_seconds(server.pid) - before
        return {
            "per_second": result["texts"] / result["seconds"],
            "cpu_ms": 1000 * cpu / max(1, result["all_texts"]),
            "caller_cpu_ms": 1000 * result["cpu_seconds"] / max(1, result["all_texts"]),
            "p50_ms": result["p50_ms"],
            "p99_ms": result["p99_ms"],
            "failed": sum(result["codes"].values()),
        }

    def check_answers(self, protocol: str, target: str) -> None:
        """Compare a server's answers with the expected ones. Raises ConnectionError and RuntimeError."""
        socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), 1.0).close()
        for name, texts in self.texts.items():
            options = ("--target", target, "--protocol", protocol, "--texts", texts, "--answers", CHECKED)
            result = run_json("load.load_generator", *options, python=self.python)
            if "failed" in result:
                raise ConnectionError(result["failed"])
            answers = result["answers"]
            if answers != self.expected[name]:
                pairs = zip(answers, self.expected[name], strict=True)
                wrong = sum(answer != expected for answer, expected in pairs)
                raise RuntimeError(f"{wrong} of {CHECKED} answers for {name} differ from Twofold's")

    def path(self, name: str) -> Path:
        """Return the file of a peer's measurements."""
        return self.work / f"{name}.{'+'.join(self.texts)}{'.packed' if self.packed else ''}.json"

    def read(self, name: str) -> dict[str, Any]:
        """Return a peer's measurements."""
        path = self.path(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"trials": [], "rounds": []}

    def write(self, name: str, measurements: Mapping[str, Any]) -> None:
        """Write a peer's measurements."""
        self.path(name).write_text(json.dumps(measurements, indent=1), encoding="utf-8")

    def check_time(self) -> None:
        """Raise TimeoutError if no further measurement may start."""
        if time.monotonic() > self.until:
            raise TimeoutError("the time is over; run the command again to continue")

    def measure_alone(self, servers: Servers, name: str, texts: str, seconds: float, *load: object) -> dict[str, Any]:
        """Send a load to one of two servers while the other is suspended."""
        with contextlib.ExitStack() as stack:
            for candidate, server in servers.items():
                if candidate != name:
                    stack.enter_context(suspended(server.pid))
            return self.send_load(servers[name], texts, seconds, *load)

    def compare_rates(self, servers: Servers) -> dict[str, dict[str, float]]:
        """Measure both rates twice in short turns, to compare settings."""
        means = {}
        for texts in self.texts:
            rates: dict[str, list[float]] = {name: [] for name in servers}
            for name in [*servers, *servers]:
                measured = self.measure_alone(servers, name, texts, self.seconds / 2, "--in-flight", IN_FLIGHT)
                rates[name].append(measured["per_second"])
            means[texts] = {name: round(sum(values) / len(values), 1) for name, values in rates.items()}
        return means

    def measure(self, servers: Servers) -> dict[str, dict[str, dict[str, float]]]:
        """Measure a round: both servers at capacity, at half of their own capacity, and at half of the peer's."""
        return {texts: self._measure_texts(servers, texts) for texts in self.texts}

    def _measure_texts(self, servers: Servers, texts: str) -> dict[str, dict[str, float]]:
        def at_rate(rate: float, name: str) -> dict[str, Any]:
            return self.measure_alone(servers, name, texts, 1.5 * self.seconds, "--rate", round(rate, 1))

        full = {
            name: self.measure_alone(servers, name, texts, self.seconds, "--in-flight", IN_FLIGHT) for name in servers
        }
        half = {name: at_rate(measured["per_second"] / 2, name) for name, measured in full.items()}
        equal = {
            name: half[name] if name == "peer" else at_rate(full["peer"]["per_second"] / 2, name) for name in servers
        }
        failures = {name: sum(load[name]["failed"] for load in (full, half, equal)) for name in servers}
        if any(failures.values()):
            raise RuntimeError(f"calls failed: {failures}")
        return {
            name: {
                **{key: full[name][key] for key in ("per_second", "cpu_ms", "caller_cpu_ms")},
                "p99_full_ms": full[name]["p99_ms"],
                **{key: half[name][key] for key in ("p50_ms", "p99_ms")},
                "cpu_half_ms": half[name]["cpu_ms"],
                "p99_equal_ms": equal[name]["p99_ms"],
            }
            for name in servers
        }

"""Turns of two servers that are up at once: one is asked, the other is stopped meanwhile."""

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

from benchmarks.peer_servers.server_process import stopped
from benchmarks.processes import cpu_seconds, run_json

IN_FLIGHT = 64
CHECKED = 50
"""Texts of each set whose answers are checked."""


@dataclass(frozen=True, slots=True)
class Side:
    """One running server, and how to call it."""

    protocol: str
    target: str
    pid: int


Sides = Mapping[str, Side]
"""Who takes turns: "twofold" and "peer"."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs."""

    work: Path
    checkpoint: Checkpoint
    graph: Path
    """The directory of the checkpoint that the peers serve."""
    packed: bool
    texts: Mapping[str, Path]
    expected: Mapping[str, Any]
    """The answers to the first texts of each set."""
    caller: Path
    """The interpreter of the process that calls."""
    seconds: float
    until: float
    """The time of the monotonic clock after which nothing new is begun."""

    def call(self, side: Side, texts: str, seconds: float, *load: object) -> dict[str, Any]:
        """Put a load on a server and say what the caller saw, and what each text cost the server."""
        before = cpu_seconds(side.pid)
        options = (
            "--target",
            side.target,
            "--protocol",
            side.protocol,
            "--texts",
            self.texts[texts],
            "--seconds",
            seconds,
        )
        called = run_json("load.load_generator", *options, *load, python=self.caller)
        cpu = cpu_seconds(side.pid) - before
        return {
            "per_second": called["texts"] / called["seconds"],
            "cpu_ms": 1000 * cpu / max(1, called["all_texts"]),
            "caller_cpu_ms": 1000 * called["cpu_seconds"] / max(1, called["all_texts"]),
            "p50_ms": called["p50_ms"],
            "p99_ms": called["p99_ms"],
            "failed": sum(called["codes"].values()),
        }

    def check(self, protocol: str, target: str) -> None:
        """Compare a server's answers with those that are expected."""
        socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), 1.0).close()
        for name, texts in self.texts.items():
            asked = ("--target", target, "--protocol", protocol, "--texts", texts, "--answers", CHECKED)
            found = run_json("load.load_generator", *asked, python=self.caller)
            if "failed" in found:
                raise ConnectionError(found["failed"])
            answers = found["answers"]
            if answers != self.expected[name]:
                wrong = sum(one != other for one, other in zip(answers, self.expected[name], strict=True))
                raise RuntimeError(f"{wrong} of {CHECKED} texts of {name} are answered otherwise than they should be")

    def kept(self, name: str) -> Path:
        """Return the file of what was measured of a peer."""
        return self.work / f"{name}.{'+'.join(self.texts)}{'.packed' if self.packed else ''}.json"

    def read(self, name: str) -> dict[str, Any]:
        """Return what was measured of a peer."""
        path = self.kept(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"trials": [], "rounds": []}

    def begin(self) -> None:
        """Raise TimeoutError if it is too late to begin something."""
        if time.monotonic() > self.until:
            raise TimeoutError("there is no time left; run it again to go on")

    def alone(self, sides: Sides, who: str, texts: str, seconds: float, *load: object) -> dict[str, Any]:
        """Put a load on one of two servers while the other is stopped."""
        with contextlib.ExitStack() as stack:
            for other, side in sides.items():
                if other != who:
                    stack.enter_context(stopped(side.pid))
            return self.call(sides[who], texts, seconds, *load)

    def rates(self, sides: Sides) -> dict[str, dict[str, float]]:
        """Measure both servers' rates shortly and twice in turns, to compare settings."""
        found = {}
        for texts in self.texts:
            rates: dict[str, list[float]] = {who: [] for who in sides}
            for who in [*sides, *sides]:
                one = self.alone(sides, who, texts, self.seconds / 2, "--in-flight", IN_FLIGHT)
                rates[who].append(one["per_second"])
            found[texts] = {who: round(sum(own) / len(own), 1) for who, own in rates.items()}
        return found

    def round(self, sides: Sides) -> dict[str, dict[str, dict[str, float]]]:
        """Let both servers take turns: at their capacity, at half of their own, and at half of the peer's."""
        found = {}
        for texts in self.texts:
            full = {who: self.alone(sides, who, texts, self.seconds, "--in-flight", IN_FLIGHT) for who in sides}

            def at(rate: float, who: str, texts: str = texts) -> dict[str, Any]:
                return self.alone(sides, who, texts, 1.5 * self.seconds, "--rate", round(rate, 1))

            half = {who: at(one["per_second"] / 2, who) for who, one in full.items()}
            equal = {who: half[who] if who == "peer" else at(full["peer"]["per_second"] / 2, who) for who in sides}
            if failed := {who: n for who in sides if (n := sum(one[who]["failed"] for one in (full, half, equal)))}:
                raise RuntimeError(f"calls failed: {failed}")
            found[texts] = {
                who: {
                    **{key: full[who][key] for key in ("per_second", "cpu_ms", "caller_cpu_ms")},
                    "p99_full_ms": full[who]["p99_ms"],
                    **{key: half[who][key] for key in ("p50_ms", "p99_ms")},
                    "cpu_half_ms": half[who]["cpu_ms"],
                    "p99_equal_ms": equal[who]["p99_ms"],
                }
                for who in sides
            }
        return found

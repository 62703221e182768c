"""Twofold and other model servers over the same graph, tokenizer, decoder and load, in turns.

    python benchmarks/peers.py --sets DIRECTORY [--texts hwu64] [--only litserve,bentoml] [--rounds 3]
                               [--seconds 3] [--fresh] [--within SECONDS] [--work DIRECTORY]

For each peer: its environment is made once, short trials find the settings that suit it best on this machine, and then
Twofold (at its defaults) and the peer take turns, one server at a time. A turn sends single-text calls: 64 in flight, whose
rate is the capacity; then at half of that, whatever becomes of them. Several sets of texts are sent one after the other
in every turn. What is measured is kept in DIRECTORY/peers, so a run goes on where another ended: --rounds says how many
rounds there shall be in all, --within after which time nothing new is begun, and --fresh forgets what was measured of the
peers that are named. docs/peers.md explains the settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from calling.processes import cpu_seconds, run_json
from calling.texts import SETS, read_texts
from calling.trained import prepare
from peers.entrants import ENTRANTS
from peers.figures import figures, summarise
from peers.running import install, running
from peers.search import search
from peers.settings import Settings
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.store import Store
from twofold_server.engine import HEAD_OUTPUTS, Engine, decode
from twofold_server.testing import free_port, serving

IN_FLIGHT = 64
ASKED = 50


@dataclass(frozen=True, slots=True)
class Side:
    """One running server, and how to call it."""

    wire: str
    target: str
    pid: int


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs."""

    work: Path
    checkpoint: Checkpoint
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
        options = ("--target", side.target, "--wire", side.wire, "--texts", self.texts[texts], "--seconds", seconds)
        called = run_json("caller.py", *options, *load, python=self.caller)
        cpu = cpu_seconds(side.pid) - before
        return {
            "per_second": called["texts"] / called["seconds"],
            "cpu_ms": 1000 * cpu / max(1, called["all_texts"]),
            "caller_cpu_ms": 1000 * called["cpu_seconds"] / max(1, called["all_texts"]),
            "p50_ms": called["p50_ms"],
            "p99_ms": called["p99_ms"],
            "failed": sum(called["codes"].values()),
        }

    def check(self, wire: str, target: str) -> None:
        """Compare a server's answers with those that are expected."""
        socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), 1.0).close()
        for name, texts in self.texts.items():
            asked = ("--target", target, "--wire", wire, "--texts", texts, "--ask", ASKED)
            found = run_json("caller.py", *asked, python=self.caller)
            if "failed" in found:
                raise ConnectionError(found["failed"])
            answers = found["answers"]
            if answers != self.expected[name]:
                wrong = sum(one != other for one, other in zip(answers, self.expected[name], strict=True))
                raise RuntimeError(f"{wrong} of {ASKED} texts of {name} are answered otherwise than they should be")

    def rates(self, side: Side) -> dict[str, float]:
        """Measure one server's rates shortly, to compare settings."""
        self.call(side, next(iter(self.texts)), self.seconds / 6, "--in-flight", IN_FLIGHT)
        called = {name: self.call(side, name, self.seconds, "--in-flight", IN_FLIGHT) for name in self.texts}
        return {name: round(one["per_second"], 1) for name, one in called.items()}

    def kept(self, name: str) -> Path:
        """Return the file of what was measured of a peer."""
        return self.work / f"{name}.{'+'.join(self.texts)}.json"

    def begin(self) -> None:
        """Raise TimeoutError if it is too late to begin something."""
        if time.monotonic() > self.until:
            raise TimeoutError("there is no time left; run it again to go on")

    def turn(self, side: Side) -> dict[str, dict[str, float]]:
        """Measure one server on all text sets."""
        found = {}
        for name in self.texts:
            self.call(side, name, self.seconds / 4, "--in-flight", IN_FLIGHT)
            full = self.call(side, name, self.seconds, "--in-flight", IN_FLIGHT)
            half = self.call(side, name, 2 * self.seconds, "--rate", round(full["per_second"] / 2, 1))
            if full["failed"] or half["failed"]:
                raise RuntimeError(f"calls failed: {full['failed']} at capacity, {half['failed']} at half of it")
            found[name] = {
                "per_second": full["per_second"],
                "cpu_ms": full["cpu_ms"],
                "caller_cpu_ms": full["caller_cpu_ms"],
                "p99_full_ms": full["p99_ms"],
                "p50_ms": half["p50_ms"],
                "p99_ms": half["p99_ms"],
                "cpu_half_ms": half["cpu_ms"],
            }
        return found


def expect(checkpoint: Checkpoint, texts: list[str]) -> list[Any]:
    """Answer texts one by one with Twofold's engine."""
    engine, found = Engine(checkpoint), []
    for text in texts:
        [encoding] = engine.encoder.encode([text])
        rows = engine.run_windows(encoding.windows, HEAD_OUTPUTS, 1 << 30)
        [answer] = decode([encoding], [rows], engine.labels)
        found.append([answer.labels[0].label, [[one.start, one.end, one.type] for one in answer.entities]])
    return found


def measure(bench: Bench, name: str, rounds: int, kept: dict[str, Any]) -> None:
    """Bring what is known of a peer up to so many rounds; *kept* is written down after every step."""
    entrant, python = ENTRANTS[name], install(name, bench.work, ENTRANTS[name].python)
    settings = Settings(port=0, checkpoint=str(bench.checkpoint.path.absolute()))

    def peer(choice: Mapping[str, Any], work: Any) -> Any:
        port = free_port()
        target = f"127.0.0.1:{port}"
        chosen = dataclasses.replace(settings, port=port, **choice)
        log = bench.work / f"{name}.log"
        with running(name, python, chosen, lambda: bench.check(entrant.wire, target), log) as pid:
            return work(Side(entrant.wire, target, pid))

    def trial(choice: Mapping[str, Any]) -> float:
        known = next((one["rates"] for one in kept["trials"] if one["settings"] == choice), None)
        if known is None:
            bench.begin()
            try:
                known = peer(choice, bench.rates)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                known = {"failed": 0.0, "why": str(error)}
            kept["trials"].append({"settings": dict(choice), "rates": known})
            write(bench, name, kept)
            print(f"{name} {choice}: {known}", file=sys.stderr, flush=True)
        return 0.0 if "failed" in known else math.prod(known.values()) ** (1 / len(known))

    best, _ = search(entrant.axes, trial)
    kept["settings"] = best
    while len(kept["rounds"]) < rounds:
        bench.begin()
        with serving(bench.checkpoint.path.parent.parent) as server:
            bench.check("twofold", server.target)
            ours = bench.turn(Side("twofold", server.target, server.pid))
        theirs = peer(best, bench.turn)
        kept["rounds"].append({texts: {"twofold": ours[texts], "peer": theirs[texts]} for texts in ours})
        write(bench, name, kept)
        print(f"{name} round {len(kept['rounds'])}: " + "; ".join(
            f"{texts} {mine['per_second']:.0f} and {theirs[texts]['per_second']:.0f} texts/s, "
            f"p99 {mine['p99_ms']:.0f} and {theirs[texts]['p99_ms']:.0f} ms"
            for texts, mine in ours.items()
        ), file=sys.stderr, flush=True)  # fmt: skip


def write(bench: Bench, name: str, kept: Mapping[str, Any]) -> None:
    """Keep what was measured of a peer."""
    bench.kept(name).write_text(json.dumps(kept, indent=1), encoding="utf-8")


def main() -> None:
    """Measure what is not measured yet, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--texts", default=SETS[0], help="some of " + ", ".join(SETS))
    parser.add_argument("--only", default="", help="some of " + ", ".join(ENTRANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--within", type=float, default=math.inf)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(".work"))
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.within
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Servers are ended on the way out.
    names = arguments.only.split(",") if arguments.only else list(ENTRANTS)
    if unknown := [name for name in names if name not in ENTRANTS]:
        parser.error(f"--only {','.join(unknown)} is not known; write some of {', '.join(ENTRANTS)}")
    work = arguments.work / "peers"
    work.mkdir(parents=True, exist_ok=True)
    (arguments.work / "swap").mkdir(exist_ok=True)
    checkpoint = Store(arguments.work / "swap" / "store").get(prepare(arguments.work / "swap")[0])
    texts, expected = {}, {}
    for name in arguments.texts.split(","):
        read = read_texts(arguments.sets, (name,))
        texts[name], expected[name] = work / f"texts.{name}.json", expect(checkpoint, read[:ASKED])
        texts[name].write_text(json.dumps(read), encoding="utf-8")
    bench = Bench(work, checkpoint, texts, expected, install("caller", work), arguments.seconds, until)
    known, missing = {}, {}
    for name in ENTRANTS:
        path = bench.kept(name)
        kept: dict[str, Any] = {"trials": [], "rounds": []}
        if path.exists() and not (arguments.fresh and name in names):
            kept = json.loads(path.read_text(encoding="utf-8"))
        if name in names:
            try:
                measure(bench, name, arguments.rounds, kept)
                kept.pop("failed", None)
            except TimeoutError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                kept["failed"] = str(error)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
            write(bench, name, kept)
        if kept["rounds"]:
            known[name] = kept
        else:
            missing[name] = kept.get("failed", "not measured yet")
    summaries = {name: summarise(kept["rounds"]) for name, kept in known.items()}
    peers = {
        name: {"settings": kept["settings"], "sets": summaries[name], "trials": kept["trials"], "rounds": len(kept["rounds"])}
        for name, kept in known.items()
    }  # fmt: skip
    settings = {"seconds": arguments.seconds, "in_flight": IN_FLIGHT, "size": 1, "texts": list(texts)}
    found = figures(summaries) if summaries else {}
    report.write("peers", settings=settings, figures=found, peers=peers, missing=missing)


if __name__ == "__main__":
    main()

"""Twofold and other model servers over the same graph, tokenizer, decoder and load, in turns.

    python -m benchmarks.peers --sets DIRECTORY [--texts hwu64] [--only litserve,bentoml] [--rounds 6]
                               [--seconds 2] [--fresh] [--packed] [--within SECONDS] [--work DIRECTORY]

For each peer: its environment is made once, short trials find the settings that suit it best on this machine, and then
Twofold (at its defaults) and the peer take turns, one server at a time. A turn sends single-text calls: 64 in flight, whose
rate is the capacity; then at half of that, whatever becomes of them; and Twofold at half of the peer's capacity, too. Several
sets of texts are sent one after the other in every turn. What is measured is kept in DIRECTORY/peers, so a run goes on where
another ended: --rounds says how many rounds there shall be in all, --within after which time nothing new is begun, and --fresh
forgets what was measured of the peers that are named. Peers serve the graph as it is exported; with --packed they get Twofold's,
which multiplies no padding.
docs/peers.md explains the settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.store import Store
from twofold_server.inference.engine import HEAD_OUTPUTS, Engine, decode
from twofold_server.testing import free_port, serving

from benchmarks import report
from benchmarks.load.checkpoints import train_checkpoints
from benchmarks.load.texts import SETS, read_texts
from benchmarks.peer_servers.catalog import ENTRANTS
from benchmarks.peer_servers.figures import figures, summarise
from benchmarks.peer_servers.graphs import export_plain
from benchmarks.peer_servers.interleaved_rounds import CHECKED, IN_FLIGHT, Bench, Side, Sides
from benchmarks.peer_servers.server_process import install, running
from benchmarks.peer_servers.settings import Settings
from benchmarks.peer_servers.settings_search import search


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
    with serving(bench.checkpoint.path.parent.parent, log=bench.work / "twofold.log") as server:
        ours = Side("twofold", server.target, server.pid)
        bench.check(ours.protocol, ours.target)
        _measure(bench, ours, name, rounds, kept)


def _measure(bench: Bench, ours: Side, name: str, rounds: int, kept: dict[str, Any]) -> None:
    entrant, python = ENTRANTS[name], install(name, bench.work, ENTRANTS[name].python)
    settings = Settings(port=0, checkpoint=str(bench.graph.absolute()))

    @contextmanager
    def both(choice: Mapping[str, Any]) -> Iterator[Sides]:
        port = free_port()
        theirs, log = f"127.0.0.1:{port}", bench.work / f"{name}.log"
        chosen = dataclasses.replace(settings, port=port, **choice)
        with running(name, python, chosen, lambda: bench.check(entrant.protocol, theirs), log) as pid:
            yield {"twofold": ours, "peer": Side(entrant.protocol, theirs, pid)}

    def trial(choice: Mapping[str, Any]) -> float:
        known = next((one["rates"] for one in kept["trials"] if one["settings"] == choice), None)
        if known is None:
            bench.begin()
            try:
                with both(choice) as sides:
                    known = bench.rates(sides)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                known = {"failed": str(error)}
            kept["trials"].append({"settings": dict(choice), "rates": known})
            write(bench, name, kept)
            print(f"{name} {choice}: {known}", file=sys.stderr, flush=True)
        if "failed" in known:
            return 0.0
        return math.prod(one["peer"] / one["twofold"] for one in known.values())

    if "settings" not in kept:
        kept["settings"] = search(entrant.axes, trial)[0]
        write(bench, name, kept)
    if len(kept["rounds"]) >= rounds:
        return
    bench.begin()
    with both(kept["settings"]) as sides:
        bench.rates(sides)  # Warms both up.
        while len(kept["rounds"]) < rounds:
            bench.begin()
            kept["rounds"].append(bench.round(sides))
            write(bench, name, kept)
            print(f"{name} round {len(kept['rounds'])}: " + "; ".join(
                f"{texts} {side} {one['per_second']:.0f} texts/s, p99 {one['p99_ms']:.0f}, {one['p99_equal_ms']:.0f} ms"
                for texts, sides in kept["rounds"][-1].items() for side, one in sides.items()
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
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--within", type=float, default=math.inf)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--packed", action="store_true")
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
    checkpoint = Store(arguments.work / "swap" / "store").get(train_checkpoints(arguments.work / "swap")[0])
    texts, expected = {}, {}
    for name in arguments.texts.split(","):
        read = read_texts(arguments.sets, (name,))
        texts[name], expected[name] = work / f"texts.{name}.json", expect(checkpoint, read[:CHECKED])
        texts[name].write_text(json.dumps(read), encoding="utf-8")
    graph = checkpoint.path if arguments.packed else export_plain(checkpoint, work)
    caller = install("load_generator", work)
    bench = Bench(work, checkpoint, graph, arguments.packed, texts, expected, caller, arguments.seconds, until)
    if unfit := [name for name in names if not _bring(bench, name, arguments.rounds, fresh=arguments.fresh)]:
        print(f"not measured to the end: {', '.join(unfit)}", file=sys.stderr)
    conclude(bench)


def _bring(bench: Bench, name: str, rounds: int, *, fresh: bool) -> bool:
    """Measure a peer as far as there is time, and say whether that was to the end."""
    kept = {"trials": [], "rounds": []} if fresh else bench.read(name)
    kept.pop("failed", None)
    try:
        measure(bench, name, rounds, kept)
    except TimeoutError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return False
    except (RuntimeError, subprocess.CalledProcessError) as error:
        kept["failed"] = str(error)
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return False
    finally:
        write(bench, name, kept)
    return True


def conclude(bench: Bench) -> None:
    """Report what is known of all peers."""
    everything = {name: bench.read(name) for name in ENTRANTS}
    known = {name: kept for name, kept in everything.items() if kept["rounds"]}
    summaries = {name: summarise(kept["rounds"]) for name, kept in known.items()}
    peers = {
        name: {
            "settings": kept["settings"],
            "sets": summaries[name],
            "trials": kept["trials"],
            "rounds": kept["rounds"],
        }
        for name, kept in known.items()
    }
    missing = {name: kept.get("failed", "not measured yet") for name, kept in everything.items() if name not in known}
    settings = {"seconds": bench.seconds, "in_flight": IN_FLIGHT, "size": 1, "texts": list(bench.texts)}
    found = figures(summaries) if summaries else {}
    report.write(
        "peers-packed" if bench.packed else "peers", settings=settings, figures=found, peers=peers, missing=missing
    )


if __name__ == "__main__":
    main()

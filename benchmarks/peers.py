"""Compare Twofold with other model servers over the same model, tokenizer, decoder and load, in interleaved rounds.

    python -m benchmarks.peers --sets DIRECTORY [--texts hwu64] [--only litserve,bentoml] [--rounds 6]
                               [--seconds 2] [--fresh] [--packed] [--within SECONDS] [--work DIRECTORY]

For each peer, an environment is created once and short trials find its fastest settings on this machine. Then Twofold, with
its defaults, and the peer are measured in interleaved rounds of single-text calls: 64 in flight, which gives the capacity;
an open loop at half of it; and Twofold also at half of the peer's capacity. Several text sets are measured one after another.
Measurements are kept in --work/peers, and a later invocation continues them: --rounds is the total number of rounds, --within
stops after some seconds, and --fresh discards the measurements of the selected peers. Peers serve the graph as exported; with
--packed they serve Twofold's graph, which skips padding. docs/peers.md explains the settings.
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
from twofold_server.inference.engine import HEAD_OUTPUTS, Engine, decode_rows
from twofold_server.testing import free_port, serving

from benchmarks import report
from benchmarks.load.checkpoints import train_checkpoints
from benchmarks.load.texts import SETS, read_texts
from benchmarks.peer_servers.catalog import PEER_SERVERS
from benchmarks.peer_servers.figures import compute_figures, summarise
from benchmarks.peer_servers.graphs import export_plain
from benchmarks.peer_servers.interleaved_rounds import CHECKED, IN_FLIGHT, Rounds, RunningServer, Servers
from benchmarks.peer_servers.server_process import install, running
from benchmarks.peer_servers.settings import Settings
from benchmarks.peer_servers.settings_search import search


def expected_answers(checkpoint: Checkpoint, texts: list[str]) -> list[Any]:
    """Predict texts one by one with Twofold's engine."""
    engine, answers = Engine(checkpoint), []
    for text in texts:
        [encoding] = engine.encoder.encode([text])
        rows = engine.run_windows(encoding.windows, HEAD_OUTPUTS, 1 << 30)
        [prediction] = decode_rows([encoding], [rows], engine.labels)
        entities = [[entity.start, entity.end, entity.type] for entity in prediction.entities]
        answers.append([prediction.labels[0].label, entities])
    return answers


class PeerComparison:
    """Measure a peer beside a running Twofold server. *measurements* is written after every step."""

    def __init__(self, rounds: Rounds, twofold: RunningServer, name: str, measurements: dict[str, Any]) -> None:
        self._rounds, self._twofold, self._name, self._measurements = rounds, twofold, name, measurements
        self._peer = PEER_SERVERS[name]
        self._python = install(name, rounds.work, self._peer.python)

    def measure(self, count: int) -> None:
        """Search the settings if necessary, and measure up to *count* rounds. Raises TimeoutError."""
        rounds, measurements = self._rounds, self._measurements
        if "settings" not in measurements:
            measurements["settings"] = search(self._peer.axes, self._try_settings)[0]
            self._save()
        if len(measurements["rounds"]) >= count:
            return
        rounds.check_time()
        with self._both(measurements["settings"]) as servers:
            rounds.compare_rates(servers)  # Warm-up.
            while len(measurements["rounds"]) < count:
                rounds.check_time()
                measurements["rounds"].append(rounds.measure(servers))
                self._save()
                self._log_round()

    @contextmanager
    def _both(self, choice: Mapping[str, Any]) -> Iterator[Servers]:
        """Run the peer beside Twofold."""
        rounds, port = self._rounds, free_port()
        target, log = f"127.0.0.1:{port}", rounds.work / f"{self._name}.log"
        settings = dataclasses.replace(Settings(port=port, checkpoint=str(rounds.graph.absolute())), **choice)

        def ready() -> None:
            rounds.check_answers(self._peer.protocol, target)

        with running(self._name, self._python, settings, ready, log) as pid:
            yield {"twofold": self._twofold, "peer": RunningServer(self._peer.protocol, target, pid)}

    def _try_settings(self, choice: Mapping[str, Any]) -> float:
        """Return the peer's rate relative to Twofold's, from an earlier trial if there is one; zero if the trial fails."""
        trials = self._measurements["trials"]
        rates = next((trial["rates"] for trial in trials if trial["settings"] == choice), None)
        if rates is None:
            self._rounds.check_time()
            try:
                with self._both(choice) as servers:
                    rates = self._rounds.compare_rates(servers)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                rates = {"failed": str(error)}
            trials.append({"settings": dict(choice), "rates": rates})
            self._save()
            log_line(f"{self._name} {choice}: {rates}")
        if "failed" in rates:
            return 0.0
        return math.prod(rate["peer"] / rate["twofold"] for rate in rates.values())

    def _save(self) -> None:
        self._rounds.write(self._name, self._measurements)

    def _log_round(self) -> None:
        results = "; ".join(
            f"{texts} {server} {result['per_second']:.0f} texts/s, p99 {result['p99_ms']:.0f}, "
            f"{result['p99_equal_ms']:.0f} ms"
            for texts, servers in self._measurements["rounds"][-1].items()
            for server, result in servers.items()
        )
        log_line(f"{self._name} round {len(self._measurements['rounds'])}: {results}")


def log_line(line: str) -> None:
    """Write a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def measure_peer(rounds: Rounds, name: str, count: int, *, fresh: bool) -> bool:
    """Measure a peer in the time available, and return whether all rounds are complete."""
    measurements = {"trials": [], "rounds": []} if fresh else rounds.read(name)
    measurements.pop("failed", None)
    store = rounds.checkpoint.path.parent.parent
    try:
        with serving(store, log=rounds.work / "twofold.log") as server:
            twofold = RunningServer("twofold", server.target, server.pid)
            rounds.check_answers(twofold.protocol, twofold.target)
            PeerComparison(rounds, twofold, name, measurements).measure(count)
    except TimeoutError as error:
        log_line(f"{name}: {error}")
        return False
    except (RuntimeError, subprocess.CalledProcessError) as error:
        measurements["failed"] = str(error)
        log_line(f"{name}: {error}")
        return False
    finally:
        rounds.write(name, measurements)
    return True


def prepare(arguments: argparse.Namespace) -> Rounds:
    """Train the checkpoint, write the texts and their expected answers, and install the load generator."""
    until = time.monotonic() + arguments.within
    work = arguments.work / "peers"
    work.mkdir(parents=True, exist_ok=True)
    checkpoint_id = train_checkpoints(arguments.work / "swap")[0]
    checkpoint = Store(arguments.work / "swap" / "store").get(checkpoint_id)
    paths, expected = {}, {}
    for name in arguments.texts.split(","):
        texts = read_texts(arguments.sets, (name,))
        paths[name], expected[name] = work / f"texts.{name}.json", expected_answers(checkpoint, texts[:CHECKED])
        paths[name].write_text(json.dumps(texts), encoding="utf-8")
    graph = checkpoint.path if arguments.packed else export_plain(checkpoint, work)
    python = install("load_generator", work)
    return Rounds(work, checkpoint, graph, arguments.packed, paths, expected, python, arguments.seconds, until)


def write_result(rounds: Rounds) -> None:
    """Write the result from the measurements of all peers."""
    measurements = {name: rounds.read(name) for name in PEER_SERVERS}
    measured = {name: entry for name, entry in measurements.items() if entry["rounds"]}
    summaries = {name: summarise(entry["rounds"]) for name, entry in measured.items()}
    report.write(
        "peers-packed" if rounds.packed else "peers",
        settings={"seconds": rounds.seconds, "in_flight": IN_FLIGHT, "size": 1, "texts": list(rounds.texts)},
        figures=compute_figures(summaries) if summaries else {},
        peers={
            name: {
                "settings": entry["settings"],
                "sets": summaries[name],
                "trials": entry["trials"],
                "rounds": entry["rounds"],
            }
            for name, entry in measured.items()
        },
        missing={
            name: entry.get("failed", "not measured yet")
            for name, entry in measurements.items()
            if name not in measured
        },
    )


def main() -> None:
    """Measure what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--texts", default=SETS[0], help="separated by commas, of " + ", ".join(SETS))
    parser.add_argument("--only", default="", help="peers separated by commas, of " + ", ".join(PEER_SERVERS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--within", type=float, default=math.inf)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(".work"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Exit through the context managers that end the servers.
    names = arguments.only.split(",") if arguments.only else list(PEER_SERVERS)
    if unknown := [name for name in names if name not in PEER_SERVERS]:
        parser.error(f"unknown peers in --only: {', '.join(unknown)}; use {', '.join(PEER_SERVERS)}")
    rounds = prepare(arguments)
    incomplete = [name for name in names if not measure_peer(rounds, name, arguments.rounds, fresh=arguments.fresh)]
    if incomplete:
        log_line(f"incomplete: {', '.join(incomplete)}")
    write_result(rounds)


if __name__ == "__main__":
    main()

"""What an adaptation job costs those who are answered beside it, and what they cost the job.

    python -m benchmarks.beside_training --sets DIRECTORY [--rounds 3] [--seconds 8] [--share 0.3] [--work DIRECTORY]

Single-text calls are sent at --share of the measured capacity, in an open loop, while a real job trains: HWU64's entities,
over gRPC, into the checkpoint that answers. In each round the load is measured without the job, whose processes are
stopped meanwhile, and with it; then the job runs without the load, which says how much the load slows it down. Both
figures of the job are of the CPU time that it gets. At last the same with a limit of latency that the load exceeds: the job
must be paused while it is sent and resumed once it is over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from twofold import Client, Example, Freeze, Head, JobState, PromotePolicy
from twofold_server.testing import Server, serving

from benchmarks import report
from benchmarks.load.checkpoints import train_checkpoints
from benchmarks.load.texts import read_texts
from benchmarks.processes import run_json

EXAMPLES = 2000
LOW_LIMIT_MS = 1.0
PATIENCE = 300.0
"""Seconds; on a busy machine it takes a while until a job that comes last trains."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A server, the texts to send, and how many a second."""

    server: Server
    texts: Path
    rate: float

    def call(self, seconds: float) -> dict[str, Any]:
        """Send calls for some seconds and return what became of them."""
        load = ("--texts", self.texts, "--rate", self.rate, "--seconds", seconds)
        return run_json("load.load_generator", "--target", self.server.target, *load)


class Trainer:
    """The processes of the job that a server runs."""

    def __init__(self, server: Server) -> None:
        self._processes = psutil.Process(server.pid).children(recursive=True)

    def cpu_seconds(self) -> float:
        """Return the CPU time that they have had."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop them where they are until the block ends."""
        for process in self._processes:
            process.suspend()
        try:
            yield
        finally:
            for process in self._processes:
                process.resume()


@contextmanager
def training(client: Client, sets: Path) -> Iterator[str]:
    """Let a job train until the block ends, and cancel it."""
    lines = (sets / "hwu64" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:EXAMPLES]
    job = client.adapt(
        [Example.from_dict(json.loads(line)) for line in lines],
        head=Head.NER,
        freeze=Freeze.HEAD,
        promote=PromotePolicy.NEVER,
    )
    try:
        wait_for(lambda: client.job(job.id).phase == "train" or client.job(job.id).is_over)
        if (found := client.job(job.id)).is_over:
            raise RuntimeError(f"the job ended before it trained: {found.state.value}: {found.reason}")
        yield job.id
    finally:
        if not client.job(job.id).state.is_over:
            client.cancel(job.id)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > PATIENCE:
            raise TimeoutError(f"it did not come about within {PATIENCE:.0f} s")
        time.sleep(0.2)


def compare(scene: Scene, trainer: Trainer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one round."""
    with trainer.stopped():
        without = scene.call(arguments.seconds)
    spans = []
    for work in (lambda: scene.call(arguments.seconds), lambda: time.sleep(arguments.seconds)):
        cpu, begun = trainer.cpu_seconds(), time.monotonic()
        called = work()
        spans.append(((trainer.cpu_seconds() - cpu) / (time.monotonic() - begun), called))
    (beside, with_job), (alone, _) = spans
    return {"without": without, "with": with_job, "job_cpus_beside": beside, "job_cpus_alone": alone}


def see_pauses(scene: Scene, client: Client, job_id: str, seconds: float) -> tuple[bool, bool]:
    """Send the load, stop it, and tell whether the job said that it was paused, and that it goes on."""

    def said(word: str) -> bool:
        return any(note.startswith(word) for note in client.job(job_id).report.notes)

    scene.call(seconds)
    paused = said("Paused")
    try:
        wait_for(lambda: said("Resumed"))
    except TimeoutError:
        return paused, False
    return paused, client.job(job_id).state is JobState.RUNNING


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    train_checkpoints(arguments.work)
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "texts.json"
        texts.write_text(json.dumps(read_texts(arguments.sets, ("hwu64",))), encoding="utf-8")
        with serving(arguments.work / "store") as server, Client(server.target) as client:
            full = ("--texts", texts, "--in-flight", 64, "--seconds", arguments.seconds)
            called = run_json("load.load_generator", "--target", server.target, *full)
            capacity = called["texts"] / called["seconds"]
            scene = Scene(server, texts, round(arguments.share * capacity, 1))
            with training(client, arguments.sets):
                trainer = Trainer(server)
                rounds = [compare(scene, trainer, arguments) for _ in range(arguments.rounds)]
        with (
            serving(arguments.work / "store", "--preempt-above-ms", str(LOW_LIMIT_MS)) as server,
            Client(server.target) as client,
            training(client, arguments.sets) as job_id,
        ):
            paused, resumed = see_pauses(Scene(server, texts, scene.rate), client, job_id, arguments.seconds)

    def median(side: str, figure: str) -> float:
        return statistics.median(float(one[side][figure]) for one in rounds)

    figures = {
        "p99_ratio": round(statistics.median(one["with"]["p99_ms"] / one["without"]["p99_ms"] for one in rounds), 2),
        "paused": float(paused),
        "resumed": float(resumed),
        **{
            f"{name}_{side}_job_ms": round(median(side, f"{name}_ms"), 2)
            for side in ("without", "with")
            for name in ("p50", "p99")
        },
        "job_slow_down": round(statistics.median(one["job_cpus_alone"] / one["job_cpus_beside"] for one in rounds), 2),
    }
    settings = {"share": arguments.share, "rate": scene.rate, "rounds": arguments.rounds, "seconds": arguments.seconds}
    report.write("beside_training", settings=settings, figures=figures, rounds=rounds)


if __name__ == "__main__":
    main()

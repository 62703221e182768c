"""Measure how a training job and inference requests slow each other down.

    python -m benchmarks.beside_training --sets DIRECTORY [--rounds 3] [--seconds 8] [--share 0.3] [--work DIRECTORY]

Single-text calls are sent in an open loop, at --share of the measured capacity, while a job adapts the live checkpoint to
HWU64's entities. Each round measures the load with the job's processes suspended, the load with the job, and the job without
load. The job's slow-down is the ratio of its CPU time per second. Finally the server gets a latency limit that the load
exceeds: the job must pause under load and resume after it.
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
TIMEOUT_SECONDS = 300.0
"""On a busy machine a low-priority job takes minutes to start training."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load: the server, the texts and the rate per second."""

    server: Server
    texts: Path
    rate: float

    def send(self, seconds: float) -> dict[str, Any]:
        """Send calls for some seconds and return their result."""
        options = ("--texts", self.texts, "--rate", self.rate, "--seconds", seconds)
        return run_json("load.load_generator", "--target", self.server.target, *options)


class Trainer:
    """The processes of a server's running job."""

    def __init__(self, server: Server) -> None:
        self._processes = psutil.Process(server.pid).children(recursive=True)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the processes."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the processes until the block ends."""
        for process in self._processes:
            process.suspend()
        try:
            yield
        finally:
            for process in self._processes:
                process.resume()


@contextmanager
def training(client: Client, sets: Path) -> Iterator[str]:
    """Run a job until the block ends, then cancel it."""
    lines = (sets / "hwu64" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:EXAMPLES]
    job = client.adapt(
        [Example.from_dict(json.loads(line)) for line in lines],
        head=Head.NER,
        freeze=Freeze.HEAD,
        promote=PromotePolicy.NEVER,
    )
    try:
        wait_for(lambda: client.job(job.id).phase == "train" or client.job(job.id).is_over)
        if (ended := client.job(job.id)).is_over:
            raise RuntimeError(f"the job ended before its training: {ended.state.value}: {ended.reason}")
        yield job.id
    finally:
        if not client.job(job.id).state.is_over:
            client.cancel(job.id)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    started_at = time.monotonic()
    while not condition():
        if time.monotonic() - started_at > TIMEOUT_SECONDS:
            raise TimeoutError(f"the condition did not hold within {TIMEOUT_SECONDS:.0f} s")
        time.sleep(0.2)


def compare(load: Load, trainer: Trainer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one round."""
    with trainer.suspended():
        without = load.send(arguments.seconds)
    measurements = []
    for work in (lambda: load.send(arguments.seconds), lambda: time.sleep(arguments.seconds)):
        cpu_before, started_at = trainer.cpu_seconds(), time.monotonic()
        result = work()
        cpus = (trainer.cpu_seconds() - cpu_before) / (time.monotonic() - started_at)
        measurements.append((cpus, result))
    (beside, with_job), (alone, _) = measurements
    return {"without": without, "with": with_job, "job_cpus_beside": beside, "job_cpus_alone": alone}


def check_preemption(load: Load, client: Client, job_id: str, seconds: float) -> tuple[bool, bool]:
    """Send the load and return whether the job paused under load and resumed after it."""

    def has_note(word: str) -> bool:
        return any(note.startswith(word) for note in client.job(job_id).report.notes)

    load.send(seconds)
    paused = has_note("Paused")
    try:
        wait_for(lambda: has_note("Resumed"))
    except TimeoutError:
        return paused, False
    return paused, client.job(job_id).state is JobState.RUNNING


def measure_capacity(server: Server, texts: Path, seconds: float) -> float:
    """Return the texts answered per second with 64 calls in flight."""
    options = ("--texts", texts, "--in-flight", 64, "--seconds", seconds)
    result = run_json("load.load_generator", "--target", server.target, *options)
    return float(result["texts"] / result["seconds"])


def compute_figures(rounds: list[dict[str, Any]], *, paused: bool, resumed: bool) -> dict[str, float]:
    """Return the medians over the rounds."""

    def median(value: Callable[[dict[str, Any]], float]) -> float:
        return round(statistics.median(map(value, rounds)), 2)

    return {
        "p99_ratio": median(lambda entry: entry["with"]["p99_ms"] / entry["without"]["p99_ms"]),
        "paused": float(paused),
        "resumed": float(resumed),
        **{
            f"{name}_{side}_job_ms": median(lambda entry, side=side, name=name: float(entry[side][f"{name}_ms"]))
            for side in ("without", "with")
            for name in ("p50", "p99")
        },
        "job_slow_down": median(lambda entry: entry["job_cpus_alone"] / entry["job_cpus_beside"]),
    }


def main() -> None:
    """Measure the rounds and the preemption, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    train_checkpoints(arguments.work)
    store = arguments.work / "store"
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch) / "texts.json"
        texts.write_text(json.dumps(read_texts(arguments.sets, ("hwu64",))), encoding="utf-8")
        with serving(store) as server, Client(server.target) as client:
            rate = round(arguments.share * measure_capacity(server, texts, arguments.seconds), 1)
            with training(client, arguments.sets):
                load, trainer = Load(server, texts, rate), Trainer(server)
                rounds = [compare(load, trainer, arguments) for _ in range(arguments.rounds)]
        with (
            serving(store, "--preempt-above-ms", str(LOW_LIMIT_MS)) as server,
            Client(server.target) as client,
            training(client, arguments.sets) as job_id,
        ):
            paused, resumed = check_preemption(Load(server, texts, rate), client, job_id, arguments.seconds)
    settings = {"share": arguments.share, "rate": rate, "rounds": arguments.rounds, "seconds": arguments.seconds}
    figures = compute_figures(rounds, paused=paused, resumed=resumed)
    report.write("beside_training", settings=settings, figures=figures, rounds=rounds)


if __name__ == "__main__":
    main()

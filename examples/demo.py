"""Run Twofold end to end on this machine: train, serve, predict, adapt under load, swap.

    python examples/demo.py [--work DIRECTORY]

1. Train a first checkpoint for the support desk of a parcel service (examples/parcels).
2. Serve it and query it.
3. Send a steady stream of requests while the NER head adapts to three new entity types.
4. Show the scores of every task before and after, and how the stream fared during the swap.

Exits with 0 only if the adapted checkpoint is live at the end and no request failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text
from twofold import (
    Client,
    Example,
    Head,
    JobState,
    Prediction,
    Retry,
    ScoreChange,
    ScoreMeasured,
    StepProgress,
    TwofoldError,
    Verdict,
)
from twofold_server.testing import serving

PARCELS = Path(__file__).parent / "parcels"
RATE = 20.0
"""Requests per second while the adaptation runs."""

console = Console(highlight=False)


def read(name: str) -> list[Example]:
    """Read one of the example data sets."""
    lines = (PARCELS / name).read_text(encoding="utf-8").splitlines()
    return [Example.from_dict(json.loads(line)) for line in lines]


@dataclass(slots=True)
class Stream:
    """Send requests at a steady rate from a separate thread, and record which checkpoint answers each and how fast."""

    target: str
    texts: list[str]
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _send(self) -> None:
        with Client(self.target, retry=Retry(attempts=1)) as client:
            begin = time.monotonic()
            for number, text in enumerate(itertools.cycle(self.texts)):
                if self._stop.wait(max(0.0, begin + number / RATE - time.monotonic())):
                    return
                sent = time.monotonic()
                try:
                    [prediction] = client.predict([text])
                except TwofoldError as error:
                    self.failures.append(str(error))
                else:
                    self.seconds.append(time.monotonic() - sent)
                    self.answered[prediction.checkpoint_id] += 1

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Send until the block ends."""
        thread = threading.Thread(target=self._send)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def show(text: str, prediction: Prediction) -> None:
    """Print a text with its entities marked and its label."""
    line = Text("  " + text)
    for entity in prediction.entities:
        line.stylize("bold cyan", 2 + entity.start, 2 + entity.end)
    score = f"  {prediction.label} {prediction.labels[0].score:.2f}"
    spans = ", ".join(f"{text[entity.start : entity.end]} = {entity.type}" for entity in prediction.entities)
    console.print(line, Text(score, "green"), Text("  " + spans, "dim"), soft_wrap=True)


def adapt(client: Client) -> str:
    """Adapt the NER head to the locker types, print progress, and return the job's id."""
    job = client.adapt(
        train=read("lockers-train.jsonl"),
        dev=read("lockers-dev.jsonl"),
        head=Head.NER,
    )
    phase = ""
    for event in client.watch(job.id):
        match event.payload:
            case StepProgress():  # Too frequent to print; the phases suffice.
                continue
            case ScoreMeasured(figure=figure, moment="before" | "after" as moment, metric=metric, value=value):
                console.print(f"    {figure} {moment}: {metric} {100 * value:.1f}")
            case JobState() as state:
                console.print(f"  job {state.value} {event.message}")
            case Verdict() as verdict:
                console.print(f"    gate: {verdict.value}: {event.message}")
            case _ if event.phase != phase:
                phase = event.phase
                console.print(f"  {phase}", style="dim")
    return job.id


def row(name: str, comparison: ScoreChange | None) -> list[str]:
    """Return a row of the final table."""
    if comparison is None:
        return [name, "", "", "", ""]
    scores = ["-" if score is None else f"{100 * score:.1f}" for score in (comparison.before, comparison.after)]
    return [name, comparison.metric, *scores, str(comparison.examples)]


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="directory for the store and the server's log")
    work: Path = parser.parse_args().work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    console.rule("1. Train a first checkpoint")
    train = [sys.executable, "-m", "twofold_trainer", "init", "--out", str(work / "store")]
    train += ["--train", str(PARCELS / "train.jsonl"), "--dev", str(PARCELS / "dev.jsonl")]
    subprocess.run(train, check=True)

    texts = [example.text for example in read("dev.jsonl") + read("lockers-dev.jsonl")]
    questions = ["where is my parcel BP4471902GB?", "locker 214 won't open, my code 7741-20 is refused"]
    with serving(work / "store", log=work / "server.log") as server, Client(server.target) as client:
        console.rule("2. Serve it")
        first = client.model()
        console.print(f"  {server.target} answers from {first.checkpoint_id}: {len(first.labels)} labels, ", end="")
        console.print(f"{len(first.entity_types)} entity types")
        for question in questions:
            show(question, client.predict([question])[0])

        console.rule(
            f"3. Adapt it to {len(read('lockers-train.jsonl'))} new examples under {RATE:.0f} requests per second"
        )
        stream = Stream(server.target, texts)
        with stream.flowing():
            job_id = adapt(client)
            time.sleep(2)  # Let the new checkpoint answer the stream for a moment.

        job, last = client.job(job_id), client.model()
        console.rule("4. Compare")
        for question in questions:
            show(question, client.predict([question])[0])

    table = Table("task", "metric", "before", "after", "examples", title="Held-out scores")
    table.add_row(*row("protected: intents", job.report.protected))
    table.add_row(*row("retained: old entity types", job.report.retained))
    table.add_row(*row("new: locker, pickup_code, shop", job.report.new))
    console.print(table)
    table = Table("requests", "value", title="The stream of requests")
    for checkpoint_id, count in stream.answered.items():
        table.add_row(f"answered by {checkpoint_id}", str(count))
    table.add_row("failed", str(len(stream.failures)))
    table.add_row("median, slowest", f"{1000 * median(stream.seconds):.0f} ms, {1000 * max(stream.seconds):.0f} ms")
    table.add_row("swap", f"{job.report.swap_seconds:.2f} s")
    console.print(table)
    console.print(job.reason)
    for failure in stream.failures[:3]:
        console.print(f"failed: {failure}", style="red")

    adapted = job.state is JobState.SUCCEEDED and last.checkpoint_id == job.candidate_checkpoint_id
    answered = stream.answered[job.candidate_checkpoint_id] > 0
    return 0 if adapted and answered and not stream.failures else 1


if __name__ == "__main__":
    sys.exit(main())

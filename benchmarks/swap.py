"""What a swap costs: promotions back and forth between two checkpoints under a steady stream of requests.

    python benchmarks/swap.py [--swaps 20] [--rate 60] [--texts 1] [--work DIRECTORY]

Requests are sent on a fixed schedule whether or not earlier ones were answered (an open loop), so a stall shows in the
latencies. `stale` counts answers of another checkpoint than the promoted one to requests that were sent after the
promotion had been reported. `mixed` counts answers that differ from what the checkpoint they name gives alone, and
requests with more than one checkpoint in one batch.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import report
from cost import run
from twofold import AsyncClient, Prediction, TwofoldError
from twofold_checkpoint.examples import read_examples
from twofold_checkpoint.store import Store
from twofold_server.testing import Server, serving

EXAMPLES = Path(__file__).parent.parent / "examples" / "parcels"
TOLERANCE = 1e-4
SETTLE = 2.0
"""Seconds of traffic between two promotions."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent and answered (seconds), which texts it held and what came back."""

    sent: float
    received: float
    texts: tuple[str, ...]
    predictions: tuple[Prediction, ...] | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Swap:
    """One promotion, from the call to its report."""

    called: float
    reported: float
    checkpoint_id: str


def prepare(work: Path) -> list[str]:
    """Train two checkpoints that differ in their seed, once, and return their ids, the current one first."""
    store = work / "store"
    for seed in range(2):
        if not (work / f"trained-{seed}").exists():
            command = [sys.executable, "-m", "twofold_trainer", "init", "--out", str(store), "--seed", str(seed)]
            run([*command, "--train", str(EXAMPLES / "train.jsonl"), "--dev", str(EXAMPLES / "dev.jsonl")])
            (work / f"trained-{seed}").touch()
    current = Store(store).get("current").id
    return sorted((checkpoint.id for checkpoint in Store(store).list()), key=lambda one: one != current)


async def request(client: AsyncClient, texts: tuple[str, ...], answers: list[Answer]) -> None:
    """Send one request and note its answer."""
    sent = time.monotonic()
    try:
        found = await client.predict(list(texts))
    except TwofoldError as error:
        answers.append(Answer(sent, time.monotonic(), texts, None, str(error)))
    else:
        answers.append(Answer(sent, time.monotonic(), texts, tuple(found)))


async def stream(client: AsyncClient, texts: list[str], rate: float, size: int, answers: list[Answer]) -> None:
    """Send requests at a rate until cancelled, then wait for those that are out."""
    groups = itertools.cycle([tuple(texts[start : start + size]) for start in range(0, len(texts) - size + 1, size)])
    out: set[asyncio.Task[None]] = set()
    begin = time.monotonic()
    try:
        for number in itertools.count():
            await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
            task = asyncio.create_task(request(client, next(groups), answers))
            out.add(task)
            task.add_done_callback(out.discard)
    finally:
        await asyncio.gather(*out)


async def watch_memory(pid: int, samples: list[tuple[float, int]]) -> None:
    """Sample a process's resident memory until cancelled."""
    process = psutil.Process(pid)
    while True:
        samples.append((time.monotonic(), process.memory_info().rss))
        await asyncio.sleep(0.02)


async def measure(
    server: Server, ids: list[str], texts: list[str], swaps: int, rate: float, size: int
) -> tuple[dict[str, dict[str, Prediction]], list[Answer], list[Swap], list[tuple[float, int]]]:
    """Promote back and forth under load."""
    answers: list[Answer] = []
    done: list[Swap] = []
    memory: list[tuple[float, int]] = []
    alone: dict[str, dict[str, Prediction]] = {}
    async with AsyncClient(server.target) as client:
        for checkpoint_id in reversed(ids):  # What each checkpoint answers to each text on its own.
            await client.promote(checkpoint_id)
            alone[checkpoint_id] = {text: (await client.predict([text]))[0] for text in texts}
        watch = asyncio.create_task(watch_memory(server.pid, memory))
        load = asyncio.create_task(stream(client, texts, rate, size, answers))
        await asyncio.sleep(2 * SETTLE)
        for number in range(1, swaps + 1):
            called = time.monotonic()
            await client.promote(ids[number % 2])
            done.append(Swap(called, time.monotonic(), ids[number % 2]))
            await asyncio.sleep(SETTLE)
        for task in (load, watch):
            task.cancel()
        await asyncio.gather(load, watch, return_exceptions=True)
    return alone, answers, done, memory


def same(one: Prediction, other: Prediction) -> bool:
    """Tell whether two answers agree in label, spans and scores."""

    def spans(prediction: Prediction) -> list[tuple[int, int, str]]:
        return [(entity.start, entity.end, entity.type) for entity in prediction.entities]

    return (
        one.label == other.label
        and spans(one) == spans(other)
        and abs(one.labels[0].score - other.labels[0].score) <= TOLERANCE
    )


def percentile(values: list[float], share: float) -> float:
    """Return the value below which *share* of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=60.0)
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    ids = prepare(arguments.work)
    texts = [example.text for example in read_examples(EXAMPLES / "dev.jsonl")]
    files = Store(arguments.work / "store").get(ids[0]).manifest.files
    model_bytes = sum(file.size for file in files if file.name.startswith("model.onnx"))
    with serving(arguments.work / "store", log=arguments.work / "server.log") as server:
        alone, answers, swaps, memory = asyncio.run(
            measure(server, ids, texts, arguments.swaps, arguments.rate, arguments.texts)
        )

    good = [answer for answer in answers if answer.predictions is not None]
    stale = mixed = 0
    for answer in good:
        assert answer.predictions is not None
        earlier = [swap for swap in swaps if swap.reported <= answer.sent]
        disturbed = any(swap.called <= answer.received and swap.reported >= answer.sent for swap in swaps)
        expected = earlier[-1].checkpoint_id if earlier else ids[0]
        named = {prediction.checkpoint_id for prediction in answer.predictions}
        stale += bool(not disturbed and named != {expected})
        pairs = zip(answer.texts, answer.predictions, strict=True)
        mixed += len(named) > 1 or any(not same(one, alone[one.checkpoint_id][text]) for text, one in pairs)
    inside, outside = [], []
    for answer in good:
        during = any(swap.called <= answer.received and swap.reported >= answer.sent for swap in swaps)
        (inside if during else outside).append(1000 * (answer.received - answer.sent))
    steady = statistics.median(rss for moment, rss in memory if moment < swaps[0].called)
    ends = [
        statistics.median(rss for moment, rss in memory if swap.reported + SETTLE / 2 < moment < swap.reported + SETTLE)
        for swap in swaps
    ]
    figures = {
        "swaps": len(swaps),
        "requests": len(answers),
        "requests_per_second": round(len(answers) / (max(a.sent for a in answers) - min(a.sent for a in answers)), 1),
        "failed": len(answers) - len(good),
        "stale": stale,
        "mixed": mixed,
        "p50_ms": round(percentile(outside, 0.5), 2),
        "p99_ms": round(percentile(outside, 0.99), 2),
        "p99_in_swap_ms": round(percentile(inside, 0.99), 2),
        "p99_swap_ratio": round(percentile(inside, 0.99) / percentile(outside, 0.99), 2),
        "swap_seconds": round(statistics.median(swap.reported - swap.called for swap in swaps), 2),
        "peak_extra_copies": round((max(rss for _, rss in memory) - steady) / model_bytes, 2),
        "rss_growth": round(ends[-1] / ends[0], 3),
    }
    settings = {
        "rate": arguments.rate,
        "texts_per_request": arguments.texts,
        "model_mib": round(model_bytes / 2**20, 1),
    }
    failures = sorted({answer.error for answer in answers if answer.error})
    report.write("swap", settings=settings, figures=figures, errors=failures[:5])


if __name__ == "__main__":
    main()

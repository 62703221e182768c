"""Measure swaps: promote three checkpoints in turn under a steady stream of requests.

    python -m benchmarks.swap [--swaps 100] [--rate RATE] [--texts 1] [--work DIRECTORY]

The default rate is half of the capacity, which is measured first with 64 requests in flight. Requests are sent on a fixed
schedule, whether or not earlier ones were answered (an open loop), so stalls show in the latencies. A request counts as in a
swap if it was pending at any time between the promotion's call and its response. The server runs with its defaults, so the
previous checkpoint stays in memory; with only two checkpoints a swap would therefore load nothing. Extra copies of the model
are counted above the server's memory before the first swap.

`stale` counts answers of a checkpoint other than the promoted one to requests sent after the promotion's response. `mixed`
counts answers that differ from those of the named checkpoint alone, and requests answered by more than one checkpoint.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
from twofold import AsyncClient, Prediction, TwofoldError
from twofold_checkpoint.checkpoint import MANIFEST
from twofold_checkpoint.examples import read_examples
from twofold_checkpoint.store import Store
from twofold_server.testing import Server, serving

from benchmarks import report
from benchmarks.load.checkpoints import EXAMPLES, train_checkpoints
from benchmarks.processes import run_json

TOLERANCE = 1e-4
SETTLE_SECONDS = 1.0
"""Seconds of traffic between two promotions."""
IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """A request: when it was sent and answered (in seconds), its texts, and the predictions or the error."""

    sent_at: float
    received_at: float
    texts: tuple[str, ...]
    predictions: tuple[Prediction, ...] | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Swap:
    """A promotion, from its call to its response."""

    called_at: float
    reported_at: float
    checkpoint_id: str


async def request(client: AsyncClient, texts: tuple[str, ...], answers: list[Answer]) -> None:
    """Send a request and record its answer."""
    sent_at = time.monotonic()
    try:
        predictions = await client.predict(list(texts))
    except TwofoldError as error:
        answers.append(Answer(sent_at, time.monotonic(), texts, None, str(error)))
    else:
        answers.append(Answer(sent_at, time.monotonic(), texts, tuple(predictions)))


async def stream(client: AsyncClient, texts: list[str], rate: float, size: int, answers: list[Answer]) -> None:
    """Send requests at a rate until cancelled, then wait for the pending ones."""
    groups = itertools.cycle([tuple(texts[start : start + size]) for start in range(0, len(texts) - size + 1, size)])
    pending: set[asyncio.Task[None]] = set()
    started_at = time.monotonic()
    try:
        for number in itertools.count():
            await asyncio.sleep(max(0.0, started_at + number / rate - time.monotonic()))
            task = asyncio.create_task(request(client, next(groups), answers))
            pending.add(task)
            task.add_done_callback(pending.discard)
    finally:
        await asyncio.gather(*pending)


async def sample_memory(pid: int, samples: list[tuple[float, int]]) -> None:
    """Sample a process's resident memory until cancelled."""
    process = psutil.Process(pid)
    while True:
        samples.append((time.monotonic(), process.memory_info().rss))
        await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Measurements:
    """Memory before the first swap, each checkpoint's answers without load, the answers under load, the swaps, and memory samples."""

    rss: int
    reference: dict[str, dict[str, Prediction]]
    answers: list[Answer]
    swaps: list[Swap]
    memory: list[tuple[float, int]]


async def measure(server: Server, ids: list[str], texts: list[str], arguments: argparse.Namespace) -> Measurements:
    """Promote the checkpoints in turn under load."""
    measurements = Measurements(psutil.Process(server.pid).memory_info().rss, {}, [], [], [])
    async with AsyncClient(server.target) as client:
        for checkpoint_id in reversed(ids):  # The reference answers of each checkpoint.
            await client.promote(checkpoint_id)
            measurements.reference[checkpoint_id] = {text: (await client.predict([text]))[0] for text in texts}
        watch = asyncio.create_task(sample_memory(server.pid, measurements.memory))
        load = asyncio.create_task(stream(client, texts, arguments.rate, arguments.texts, measurements.answers))
        await asyncio.sleep(4 * SETTLE_SECONDS)
        for number in range(1, arguments.swaps + 1):
            called_at, promoted = time.monotonic(), ids[number % len(ids)]
            await client.promote(promoted)
            measurements.swaps.append(Swap(called_at, time.monotonic(), promoted))
            await asyncio.sleep(SETTLE_SECONDS)
        for task in (load, watch):
            task.cancel()
        await asyncio.gather(load, watch, return_exceptions=True)
    return measurements


def agree(prediction: Prediction, reference: Prediction) -> bool:
    """Whether two predictions have the same label and spans, and the same score within the tolerance."""

    def spans(prediction: Prediction) -> list[tuple[int, int, str]]:
        return [(entity.start, entity.end, entity.type) for entity in prediction.entities]

    return (
        prediction.label == reference.label
        and spans(prediction) == spans(reference)
        and abs(prediction.labels[0].score - reference.labels[0].score) <= TOLERANCE
    )


def percentile(values: list[float], share: float) -> float:
    """Return the value below which the given share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def overlaps(answer: Answer, swap: Swap) -> bool:
    """Whether a request was pending during a swap."""
    return swap.called_at <= answer.received_at and swap.reported_at >= answer.sent_at


def measure_capacity(server: Server, texts: list[str], arguments: argparse.Namespace) -> float:
    """Return the requests answered per second with many in flight."""
    file = arguments.work / "texts.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    options = ("--texts", file, "--in-flight", IN_FLIGHT, "--size", arguments.texts, "--seconds", 6)
    result = run_json("load.load_generator", "--target", server.target, *options)
    return float(result["texts"] / result["seconds"] / arguments.texts)


def summarise(
    measurements: Measurements, ids: list[str], arguments: argparse.Namespace, *, model_bytes: int, capacity: float
) -> dict[str, Any]:
    """Return the settings and figures of the result file."""
    answered = [answer for answer in measurements.answers if answer.predictions is not None]
    stale = mixed = 0
    inside, outside = [], []
    for answer in answered:
        assert answer.predictions is not None
        during = any(overlaps(answer, swap) for swap in measurements.swaps)
        (inside if during else outside).append(1000 * (answer.received_at - answer.sent_at))
        earlier = [swap.checkpoint_id for swap in measurements.swaps if swap.reported_at <= answer.sent_at]
        checkpoints = {prediction.checkpoint_id for prediction in answer.predictions}
        # During a swap either checkpoint may answer; after its response only the promoted one.
        stale += not during and checkpoints != {earlier[-1] if earlier else ids[0]}
        pairs = zip(answer.texts, answer.predictions, strict=True)
        mixed += len(checkpoints) > 1 or any(
            not agree(prediction, measurements.reference[prediction.checkpoint_id][text]) for text, prediction in pairs
        )
    ends = [
        statistics.median(
            rss
            for sampled_at, rss in measurements.memory
            if SETTLE_SECONDS / 2 < sampled_at - swap.reported_at < SETTLE_SECONDS
        )
        for swap in measurements.swaps
    ]
    duration = max(answer.sent_at for answer in measurements.answers) - min(
        answer.sent_at for answer in measurements.answers
    )
    figures = {
        "swaps": len(measurements.swaps),
        "requests": len(measurements.answers),
        "requests_per_second": round(len(measurements.answers) / duration, 1),
        "failed": len(measurements.answers) - len(answered),
        "stale": stale,
        "mixed": mixed,
        "p50_ms": round(percentile(outside, 0.5), 2),
        "p99_ms": round(percentile(outside, 0.99), 2),
        "p99_in_swap_ms": round(percentile(inside, 0.99), 2),
        "p99_swap_ratio": round(percentile(inside, 0.99) / percentile(outside, 0.99), 2),
        "swap_seconds": round(statistics.median(swap.reported_at - swap.called_at for swap in measurements.swaps), 2),
        "peak_extra_copies": round((max(rss for _, rss in measurements.memory) - measurements.rss) / model_bytes, 2),
        "rss_growth": round(ends[-1] / ends[1], 3),
    }
    settings = {
        "rate": arguments.rate,
        "capacity": round(capacity, 1),
        "texts_per_request": arguments.texts,
        "model_mib": round(model_bytes / 2**20, 1),
    }
    failures = sorted({answer.error for answer in measurements.answers if answer.error})
    tenths = [round(end / 2**20, 1) for end in ends[1 :: max(1, len(ends) // 10)]]
    return {"settings": settings, "figures": figures, "errors": failures[:5], "after_swaps_mib": tenths}


def add_third(store: Store, ids: list[str]) -> list[str]:
    """Publish a copy of the first of two checkpoints under a new id, if it is missing."""
    if len(ids) < 3:
        first = store.get(ids[0])
        with store.staging() as staged:
            shutil.copytree(first.path, staged, dirs_exist_ok=True)
            (staged / MANIFEST).unlink()
            store.publish(staged, msgspec.structs.replace(first.manifest, id=f"{first.id}-again"))
        ids = [*ids, f"{first.id}-again"]
    return ids


def main() -> None:
    """Measure swaps and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, help="requests per second (default: half of the capacity)")
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    store = Store(arguments.work / "store")
    ids = add_third(store, train_checkpoints(arguments.work))
    texts = [example.text for example in read_examples(EXAMPLES / "dev.jsonl")]
    files = store.get(ids[0]).manifest.files
    model_bytes = sum(file.size for file in files if file.name.startswith("model.onnx"))
    with serving(store.root, log=arguments.work / "server.log") as server:
        capacity = measure_capacity(server, texts, arguments)
        arguments.rate = arguments.rate or round(capacity / 2, 1)
        measurements = asyncio.run(measure(server, ids, texts, arguments))
    report.write("swap", **summarise(measurements, ids, arguments, model_bytes=model_bytes, capacity=capacity))


if __name__ == "__main__":
    main()

"""What a swap costs: promotions of three checkpoints, one after the other, under a steady stream of requests.

    python -m benchmarks.swap [--swaps 100] [--rate RATE] [--texts 1] [--work DIRECTORY]

The rate is half of the capacity, measured first with 64 requests in flight, unless it is given. Requests are sent on a
fixed schedule whether or not earlier ones were answered (an open loop), so a stall shows in the latencies. A request
that was out at any moment between a promotion's call and its report counts as one in a swap. The server runs at its
defaults, so the checkpoint before stays in memory and is compared with; with two of them a swap would load nothing, for the
one that is promoted would be in memory still. Copies are counted above the memory of the server before its first swap.

`stale` counts answers of another checkpoint than the promoted one to requests that were sent after the promotion had been
reported. `mixed` counts answers that differ from what the checkpoint they name gives alone, and requests with more than one
checkpoint in one batch.
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
SETTLE = 1.0
"""Seconds of traffic between two promotions."""
IN_FLIGHT = 64


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


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run saw: memory before any swap, each checkpoint's answers alone, all answers under load, the swaps, memory."""

    rss: int
    alone: dict[str, dict[str, Prediction]]
    answers: list[Answer]
    swaps: list[Swap]
    memory: list[tuple[float, int]]


async def measure(server: Server, ids: list[str], texts: list[str], arguments: argparse.Namespace) -> Measured:
    """Promote one after the other under load."""
    seen = Measured(psutil.Process(server.pid).memory_info().rss, {}, [], [], [])
    async with AsyncClient(server.target) as client:
        for checkpoint_id in reversed(ids):  # What each checkpoint answers to each text on its own.
            await client.promote(checkpoint_id)
            seen.alone[checkpoint_id] = {text: (await client.predict([text]))[0] for text in texts}
        watch = asyncio.create_task(watch_memory(server.pid, seen.memory))
        load = asyncio.create_task(stream(client, texts, arguments.rate, arguments.texts, seen.answers))
        await asyncio.sleep(4 * SETTLE)
        for number in range(1, arguments.swaps + 1):
            called, promoted = time.monotonic(), ids[number % len(ids)]
            await client.promote(promoted)
            seen.swaps.append(Swap(called, time.monotonic(), promoted))
            await asyncio.sleep(SETTLE)
        for task in (load, watch):
            task.cancel()
        await asyncio.gather(load, watch, return_exceptions=True)
    return seen


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


def overlaps(answer: Answer, swap: Swap) -> bool:
    """Tell whether a request was out while the swap was under way."""
    return swap.called <= answer.received and swap.reported >= answer.sent


def measure_capacity(server: Server, texts: list[str], arguments: argparse.Namespace) -> float:
    """Return the requests that are answered in a second when many are in flight."""
    file = arguments.work / "texts.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    load = ("--texts", file, "--in-flight", IN_FLIGHT, "--size", arguments.texts, "--seconds", 6)
    called = run_json("load.load_generator", "--target", server.target, *load)
    return float(called["texts"] / called["seconds"] / arguments.texts)


def summarise(
    seen: Measured, ids: list[str], arguments: argparse.Namespace, *, model_bytes: int, capacity: float
) -> dict[str, Any]:
    """Turn what was seen into the report."""
    good = [answer for answer in seen.answers if answer.predictions is not None]
    stale = mixed = 0
    inside, outside = [], []
    for answer in good:
        assert answer.predictions is not None
        during = any(overlaps(answer, swap) for swap in seen.swaps)
        (inside if during else outside).append(1000 * (answer.received - answer.sent))
        earlier = [swap.checkpoint_id for swap in seen.swaps if swap.reported <= answer.sent]
        named = {prediction.checkpoint_id for prediction in answer.predictions}
        # While a swap is under way either may answer; a request that was sent after its report may not be stale.
        stale += not during and named != {earlier[-1] if earlier else ids[0]}
        pairs = zip(answer.texts, answer.predictions, strict=True)
        mixed += len(named) > 1 or any(not same(one, seen.alone[one.checkpoint_id][text]) for text, one in pairs)
    ends = [
        statistics.median(rss for moment, rss in seen.memory if SETTLE / 2 < moment - swap.reported < SETTLE)
        for swap in seen.swaps
    ]
    span = max(answer.sent for answer in seen.answers) - min(answer.sent for answer in seen.answers)
    figures = {
        "swaps": len(seen.swaps),
        "requests": len(seen.answers),
        "requests_per_second": round(len(seen.answers) / span, 1),
        "failed": len(seen.answers) - len(good),
        "stale": stale,
        "mixed": mixed,
        "p50_ms": round(percentile(outside, 0.5), 2),
        "p99_ms": round(percentile(outside, 0.99), 2),
        "p99_in_swap_ms": round(percentile(inside, 0.99), 2),
        "p99_swap_ratio": round(percentile(inside, 0.99) / percentile(outside, 0.99), 2),
        "swap_seconds": round(statistics.median(swap.reported - swap.called for swap in seen.swaps), 2),
        "peak_extra_copies": round((max(rss for _, rss in seen.memory) - seen.rss) / model_bytes, 2),
        "rss_growth": round(ends[-1] / ends[1], 3),
    }
    settings = {
        "rate": arguments.rate,
        "capacity": round(capacity, 1),
        "texts_per_request": arguments.texts,
        "model_mib": round(model_bytes / 2**20, 1),
    }
    failures = sorted({answer.error for answer in seen.answers if answer.error})
    tenths = [round(end / 2**20, 1) for end in ends[1 :: max(1, len(ends) // 10)]]
    return {"settings": settings, "figures": figures, "errors": failures[:5], "after_swaps_mib": tenths}


def with_third(store: Store, ids: list[str]) -> list[str]:
    """Publish the first of two checkpoints once more, under an id of its own, if that was not done before."""
    if len(ids) < 3:
        first = store.get(ids[0])
        with store.staging() as staged:
            shutil.copytree(first.path, staged, dirs_exist_ok=True)
            (staged / MANIFEST).unlink()
            store.publish(staged, msgspec.structs.replace(first.manifest, id=f"{first.id}-again"))
        ids = [*ids, f"{first.id}-again"]
    return ids


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, help="requests a second, instead of half of the capacity")
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = Store(arguments.work / "store")
    ids = with_third(store, train_checkpoints(arguments.work))
    texts = [example.text for example in read_examples(EXAMPLES / "dev.jsonl")]
    files = store.get(ids[0]).manifest.files
    model_bytes = sum(file.size for file in files if file.name.startswith("model.onnx"))
    with serving(store.root, log=arguments.work / "server.log") as server:
        capacity = measure_capacity(server, texts, arguments)
        arguments.rate = arguments.rate or round(capacity / 2, 1)
        seen = asyncio.run(measure(server, ids, texts, arguments))
    report.write("swap", **summarise(seen, ids, arguments, model_bytes=model_bytes, capacity=capacity))


if __name__ == "__main__":
    main()

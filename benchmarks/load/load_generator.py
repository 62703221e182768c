"""Send load to a server from a separate process: a number of calls in flight, or a fixed rate.

    python -m benchmarks.load.load_generator --target HOST:PORT --texts FILE [--in-flight 64 | --rate 300] [--size 1]
                                             [--seconds 5] [--protocol twofold|open_inference|http] [--answers 50]

FILE holds a JSON array of texts; each call carries --size of them. With --in-flight the loop is closed: an answer triggers
the next call. With --rate it is open: calls do not wait for answers. Requests are serialised beforehand, to use little of
the cores shared with the server. The last line of output is a JSON object with throughput, latencies, failures and CPU time.
With --answers the first texts are sent once, in parallel, and the output holds their answers instead.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load.protocols import PROTOCOLS, Answer, CallError, Protocol


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What the load generator measured. Latencies are in milliseconds; *codes* counts failed calls by status."""

    texts: int
    """Texts answered within *seconds*."""
    seconds: float
    all_texts: int
    """Texts answered, including those of the warm-up and of the last calls: the load behind the server's CPU seconds."""
    cpu_seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    codes: dict[str, int]


class LoadGenerator:
    """Make calls and record the answers that arrive within the measured period, which follows a warm-up of a tenth."""

    def __init__(self, protocol: Protocol, texts: list[str], size: int, seconds: float) -> None:
        groups = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
        self._requests = itertools.cycle([protocol.write(group) for group in groups])
        self._protocol = protocol
        self._start = time.monotonic() + seconds / 10
        self._end = self._start + seconds
        self.answered = self.answered_in_time = 0
        self.latencies: list[float] = []
        self.codes: Counter[str] = Counter()

    async def call(self) -> None:
        """Make a call."""
        sent_at = time.monotonic()
        try:
            count = self._protocol.count(await self._protocol.send(next(self._requests)))
        except CallError as error:
            self.codes[str(error)] += 1
            return
        received_at = time.monotonic()
        self.answered += count
        if self._start <= received_at <= self._end:
            self.answered_in_time += count
            self.latencies.append(1000 * (received_at - sent_at))

    async def run_closed_loop(self, in_flight: int) -> None:
        """Keep a number of calls in flight."""

        async def worker() -> None:
            while time.monotonic() < self._end:
                await self.call()

        await asyncio.gather(*(worker() for _ in range(in_flight)))

    async def run_open_loop(self, rate: float) -> None:
        """Make calls at a fixed rate per second, then wait for the pending ones."""
        pending: set[asyncio.Task[None]] = set()
        started_at = time.monotonic()
        for number in itertools.count():
            due = started_at + number / rate
            if due > self._end:
                break
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self.call())
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)


async def generate_load(arguments: argparse.Namespace, texts: list[str]) -> LoadResult:
    """Send load for some seconds."""
    async with PROTOCOLS[arguments.protocol](arguments.target) as protocol:
        generator = LoadGenerator(protocol, texts, arguments.size, arguments.seconds)
        cpu_before = time.process_time()
        if arguments.rate:
            await generator.run_open_loop(arguments.rate)
        else:
            await generator.run_closed_loop(arguments.in_flight)
        cpu_seconds = time.process_time() - cpu_before
    latencies = sorted(generator.latencies) or [math.inf]  # A short period may have no answer.
    percentiles = (latencies[min(len(latencies) - 1, int(share * len(latencies)))] for share in (0.5, 0.95, 0.99))
    return LoadResult(
        generator.answered_in_time,
        arguments.seconds,
        generator.answered,
        cpu_seconds,
        *percentiles,
        codes=dict(generator.codes),
    )


async def fetch_answers(arguments: argparse.Namespace, texts: list[str]) -> list[Answer]:
    """Send each text in a separate call, all in parallel, and return the answers."""
    async with PROTOCOLS[arguments.protocol](arguments.target) as protocol:
        responses = await asyncio.gather(*(protocol.send(protocol.write([text])) for text in texts))
        return [answer for response in responses for answer in protocol.answers(response)]


def main() -> None:
    """Send the load and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, help="calls per second, instead of calls in flight")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="twofold")
    parser.add_argument("--answers", type=int, help="number of texts to send once and print the answers of")
    arguments = parser.parse_args()
    texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
    if arguments.answers:
        try:
            print(json.dumps({"answers": asyncio.run(fetch_answers(arguments, texts[: arguments.answers]))}))
        except CallError as error:
            print(json.dumps({"failed": str(error)}))
    else:
        print(json.dumps(asdict(asyncio.run(generate_load(arguments, texts)))))


if __name__ == "__main__":
    main()

"""Put load on a server from a process of its own: N calls in flight, or a rate that does not wait for answers.

    python -m benchmarks.load.load_generator --target HOST:PORT --texts FILE [--in-flight 64 | --rate 300] [--size 1]
                                        [--seconds 5] [--wire twofold | open_inference | http] [--ask 50]

FILE holds a JSON array of texts. Each call carries --size texts. With --ask the first texts are only asked about, all at
once, and the last line says what was answered. Requests are serialised beforehand and answers are
parsed, so that the caller takes as little as it can of the cores that it shares with the server. The last line of output
is a JSON object: what was answered, in which time, and what it cost this process.
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

from benchmarks.load.protocols import WIRES, Answer, CallError, Wire


@dataclass(frozen=True, slots=True)
class Called:
    """What a caller saw. Latencies are in milliseconds; *codes* counts the calls that failed, by status."""

    texts: int
    """Texts answered within *seconds*."""
    seconds: float
    all_texts: int
    """Texts answered, those of the warm-up and the last ones included: what the server's CPU seconds went to."""
    cpu_seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    codes: dict[str, int]


class Calls:
    """Make calls and note what comes back, and whether it came within the time that counts."""

    def __init__(self, wire: Wire, texts: list[str], size: int, seconds: float) -> None:
        groups = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
        self._requests = itertools.cycle([wire.write(group) for group in groups])
        self._wire = wire
        self.first = time.monotonic() + seconds / 10
        """After a tenth of the time to warm up, calls count."""
        self.last = self.first + seconds
        self.answered = self.answered_in_time = 0
        self.latencies: list[float] = []
        self.codes: Counter[str] = Counter()

    async def make(self) -> None:
        """Make one call."""
        sent = time.monotonic()
        try:
            count = self._wire.count(await self._wire.send(next(self._requests)))
        except CallError as error:
            self.codes[str(error)] += 1
            return
        received = time.monotonic()
        self.answered += count
        if self.first <= received <= self.last:
            self.answered_in_time += count
            self.latencies.append(1000 * (received - sent))


async def keep_in_flight(calls: Calls, in_flight: int) -> None:
    """Keep so many calls out: a closed loop."""

    async def worker() -> None:
        while time.monotonic() < calls.last:
            await calls.make()

    await asyncio.gather(*(worker() for _ in range(in_flight)))


async def keep_rate(calls: Calls, rate: float) -> None:
    """Send so many calls a second, whatever becomes of them: an open loop. Waits for those that are out at the end."""
    out: set[asyncio.Task[None]] = set()
    begun = time.monotonic()
    for number in itertools.count():
        due = begun + number / rate
        if due > calls.last:
            break
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(calls.make())
        out.add(task)
        task.add_done_callback(out.discard)
    await asyncio.gather(*out)


async def call(arguments: argparse.Namespace, texts: list[str]) -> Called:
    """Call for some seconds."""
    async with WIRES[arguments.wire](arguments.target) as wire:
        calls = Calls(wire, texts, arguments.size, arguments.seconds)
        before = time.process_time()
        if arguments.rate:
            await keep_rate(calls, arguments.rate)
        else:
            await keep_in_flight(calls, arguments.in_flight)
        cpu = time.process_time() - before
    latencies = sorted(calls.latencies) or [math.inf]  # Nothing may have come back within so short a time.
    percentiles = (latencies[min(len(latencies) - 1, int(share * len(latencies)))] for share in (0.5, 0.95, 0.99))
    return Called(calls.answered_in_time, arguments.seconds, calls.answered, cpu, *percentiles, codes=dict(calls.codes))


async def ask(arguments: argparse.Namespace, texts: list[str]) -> list[Answer]:
    """Ask about each text in a call of its own, all at once."""
    async with WIRES[arguments.wire](arguments.target) as wire:
        responses = await asyncio.gather(*(wire.send(wire.write([text])) for text in texts))
        return [answer for response in responses for answer in wire.answers(response)]


def main() -> None:
    """Call, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, help="calls a second, instead of calls in flight")
    parser.add_argument("--wire", choices=WIRES, default="twofold")
    parser.add_argument("--ask", type=int, help="only ask about so many texts, and print the answers")
    arguments = parser.parse_args()
    texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
    if arguments.ask:
        try:
            print(json.dumps({"answers": asyncio.run(ask(arguments, texts[: arguments.ask]))}))
        except CallError as error:
            print(json.dumps({"failed": str(error)}))
    else:
        print(json.dumps(asdict(asyncio.run(call(arguments, texts)))))


if __name__ == "__main__":
    main()

"""Minutes of everything at once, meant and not: no status code that is not expected, and memory that does not grow.

    python -m benchmarks.soak [--seconds 600] [--in-flight 6] [--seed 0] [--work DIRECTORY]

Calls of all kinds (benchmarks/soak/calls.py) are kept in flight while checkpoints are promoted and rolled back, jobs adapt, are
cancelled and watched by those who leave. `unexpected` counts the calls that ended with a status that is none of their
kind's or with an answer that is not whole, and the jobs that failed, unless another checkpoint was promoted meanwhile;
`errors_logged` counts the lines of the server's log at that level. `rss_growth` is the server's memory in the last tenth of
the time over that in the second tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import psutil
from grpc import StatusCode
from twofold.v1 import checkpoints_pb2
from twofold_checkpoint.examples import read_examples
from twofold_checkpoint.store import Store
from twofold_server.testing import Server, serving

from benchmarks import report
from benchmarks.load.checkpoints import EXAMPLES, train_checkpoints
from benchmarks.soak.calls import KINDS, OK, Caller, mix
from benchmarks.soak.jobs import Jobs, adapt, watch_and_leave

SWAP_SECONDS = 5.0
LONGEST_PAUSE = 0.2
"""Seconds that a caller waits between two calls at most."""


@dataclass(slots=True)
class Tally:
    """Calls by kind and status, those that should not have ended so, and jobs by state."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    jobs: Jobs = field(default_factory=Jobs)
    memory: list[tuple[float, int]] = field(default_factory=list)

    async def note(self, name: str, expected: frozenset[StatusCode], call: Awaitable[object]) -> None:
        """Await a call and note how it ended."""
        code, said = StatusCode.OK, ""
        try:
            await call
        except grpc.aio.AioRpcError as error:
            code, said = error.code(), str(error.details())
        except asyncio.CancelledError:  # How the call of somebody who went away ends.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            code = StatusCode.CANCELLED
        except AssertionError as error:
            code, said = StatusCode.UNKNOWN, str(error)
        self.codes[name, code.name] += 1
        if code not in expected:
            self.unexpected.append(f"{name}: {code.name} {said}")


async def keep_calling(caller: Caller, tally: Tally, until: float) -> None:
    """Make one call after the other."""
    calls = mix(caller.chance)
    while time.monotonic() < until:
        kind = next(calls)
        await tally.note(kind.__name__, KINDS[kind][1], kind(caller))
        await asyncio.sleep(
            caller.chance.uniform(0, LONGEST_PAUSE)
        )  # Or the jobs, which come last, would never get on.


async def keep_swapping(caller: Caller, tally: Tally, ids: list[str], until: float) -> None:
    """Promote one checkpoint and the other, and roll back every third time."""
    stub = caller.checkpoints
    for number in itertools.count(1):
        await asyncio.sleep(SWAP_SECONDS)
        if time.monotonic() > until:
            return
        if number % 3:
            name = checkpoints_pb2.PromoteCheckpointRequest(checkpoint=ids[number % 2])
            await tally.note("promote", OK, stub.PromoteCheckpoint(name, timeout=60))
        else:
            await tally.note("roll_back", OK, stub.RollBack(checkpoints_pb2.RollBackRequest(), timeout=60))


async def keep_adapting(caller: Caller, tally: Tally, until: float) -> None:
    """Let jobs run, one after the other, some to their end."""
    while time.monotonic() < until:
        begun = adapt(caller, until, tally.jobs)
        await tally.note("adapt", OK | {StatusCode.FAILED_PRECONDITION}, begun)


async def keep_watching(caller: Caller, tally: Tally, until: float) -> None:
    """Watch the newest job, and go away in the middle."""
    while time.monotonic() < until:
        await tally.note("watch", OK | {StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED}, watch_and_leave(caller))


async def watch_memory(pid: int, tally: Tally, until: float) -> None:
    """Sample the server's memory. Its trainers are processes of their own."""
    process = psutil.Process(pid)
    while (now := time.monotonic()) < until:
        tally.memory.append((now, process.memory_info().rss))
        await asyncio.sleep(0.25)


async def soak(server: Server, ids: list[str], arguments: argparse.Namespace) -> Tally:
    """Do all of it for some seconds."""
    tally, until = Tally(), time.monotonic() + arguments.seconds
    texts = [example.text for example in read_examples(EXAMPLES / "dev.jsonl")]
    loops: list[Callable[[Caller, Tally, float], Awaitable[None]]] = [keep_calling] * arguments.in_flight
    loops += [keep_adapting, keep_watching, keep_watching, lambda *of: keep_swapping(*of[:2], ids, of[2])]
    async with grpc.aio.insecure_channel(server.target) as channel:
        await asyncio.gather(
            watch_memory(server.pid, tally, until),
            *(
                loop(Caller.over(channel, texts, arguments.seed + place), tally, until)
                for place, loop in enumerate(loops)
            ),
        )
    return tally


def by_tenths(memory: list[tuple[float, int]]) -> list[float]:
    """Return the medians of each tenth of the time, in MiB."""
    tenth = len(memory) // 10
    parts = (memory[place * tenth : (place + 1) * tenth] for place in range(10))
    return [round(statistics.median(rss for _, rss in part) / 2**20, 1) for part in parts]


def errors_of(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a server's log that are errors."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    return [line for line in lines if line["level"] in {"error", "critical"}]


def main() -> None:
    """Soak and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--in-flight", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    ids = train_checkpoints(arguments.work)
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        store = Path(scratch) / "store"  # A copy: jobs publish into it.
        original = Store(arguments.work / "store")
        for one in ids:
            shutil.copytree(original.get(one).path, store / "checkpoints" / one)
        shutil.copy(arguments.work / "store" / "aliases.json", store)
        Random(arguments.seed).shuffle(ids)
        # In the last place a job would not end beside calls that never cease.
        with serving(store, "--trainer-niceness", "5", log=arguments.work / "soak.log") as server:
            tally = asyncio.run(soak(server, ids, arguments))
    memory, errors = by_tenths(tally.memory), errors_of(arguments.work / "soak.log")
    unexpected = tally.unexpected + tally.jobs.failures
    figures: dict[str, Any] = {
        "unexpected": len(unexpected),
        "errors_logged": len(errors),
        "rss_growth": round(memory[-1] / memory[1], 3),
        "requests": tally.codes.total(),
        "swaps": sum(
            count for (name, code), count in tally.codes.items() if name in {"promote", "roll_back"} and code == "OK"
        ),
        **{f"jobs_{state}": count for state, count in sorted(tally.jobs.states.items())},
    }
    codes: dict[str, dict[str, int]] = {}
    for (name, code), count in sorted(tally.codes.items()):
        codes.setdefault(name, {})[code] = count
    settings = {"seconds": arguments.seconds, "in_flight": arguments.in_flight, "seed": arguments.seed}
    report.write(
        "soak",
        settings=settings,
        figures=figures,
        codes=codes,
        memory_mib=memory,
        unexpected=unexpected[:10],
        errors=errors[:10],
    )


if __name__ == "__main__":
    main()

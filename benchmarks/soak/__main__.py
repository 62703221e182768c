"""Run mixed load for minutes and check that no call ends with an unexpected status and that memory does not grow.

    python -m benchmarks.soak [--seconds 600] [--in-flight 6] [--seed 0] [--work DIRECTORY]

All kinds of calls (benchmarks/soak/calls.py) run while checkpoints are promoted and rolled back, and jobs are run, cancelled
and watched. `unexpected` counts calls with an unexpected status or an incomplete answer, and failed jobs, except those whose
base changed; `errors_logged` counts the server's log lines at level error. `rss_growth` is the server's memory in the last
tenth of the time divided by that in the second tenth.
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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
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
from benchmarks.soak.calls import CALLS, OK, Caller, shuffled_calls
from benchmarks.soak.jobs import Jobs, adapt, watch_and_cancel

SWAP_SECONDS = 5.0
MAX_PAUSE_SECONDS = 0.2
"""Longest pause of a caller between two calls."""


@dataclass(slots=True)
class Observations:
    """Calls by kind and status, unexpected outcomes, jobs by state, and samples of the server's memory."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    jobs: Jobs = field(default_factory=Jobs)
    memory: list[tuple[float, int]] = field(default_factory=list)

    async def observe(self, name: str, expected: frozenset[StatusCode], call: Awaitable[object]) -> None:
        """Await a call and record its status."""
        code, details = StatusCode.OK, ""
        try:
            await call
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), str(error.details())
        except asyncio.CancelledError:  # The call cancelled itself.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            code = StatusCode.CANCELLED
        except AssertionError as error:
            code, details = StatusCode.UNKNOWN, str(error)
        self.codes[name, code.name] += 1
        if code not in expected:
            self.unexpected.append(f"{name}: {code.name} {details}")

    def figures(self, errors: int) -> dict[str, Any]:
        """Return the figures of the soak test; *errors* is the number of errors in the server's log."""
        memory = medians_by_tenth(self.memory)
        swaps = sum(self.codes[name, "OK"] for name in ("promote", "roll_back"))
        return {
            "unexpected": len(self.unexpected) + len(self.jobs.failures),
            "errors_logged": errors,
            "rss_growth": round(memory[-1] / memory[1], 3),
            "requests": self.codes.total(),
            "swaps": swaps,
            **{f"jobs_{state}": count for state, count in sorted(self.jobs.states.items())},
        }

    def codes_by_call(self) -> dict[str, dict[str, int]]:
        """Return the number of calls by name and status."""
        codes: dict[str, dict[str, int]] = {}
        for (name, code), count in sorted(self.codes.items()):
            codes.setdefault(name, {})[code] = count
        return codes


async def call_repeatedly(caller: Caller, observations: Observations, until: float) -> None:
    """Make random calls one after another."""
    calls = shuffled_calls(caller.rng)
    while time.monotonic() < until:
        call = next(calls)
        await observations.observe(call.__name__, CALLS[call][1], call(caller))
        await asyncio.sleep(caller.rng.uniform(0, MAX_PAUSE_SECONDS))  # Leave CPU time for the low-priority jobs.


async def swap_repeatedly(caller: Caller, observations: Observations, ids: list[str], until: float) -> None:
    """Promote the checkpoints alternately, and roll back every third time."""
    stub = caller.checkpoints
    for number in itertools.count(1):
        await asyncio.sleep(SWAP_SECONDS)
        if time.monotonic() > until:
            return
        if number % 3:
            name = checkpoints_pb2.PromoteCheckpointRequest(checkpoint=ids[number % 2])
            await observations.observe("promote", OK, stub.PromoteCheckpoint(name, timeout=60))
        else:
            await observations.observe("roll_back", OK, stub.RollBack(checkpoints_pb2.RollBackRequest(), timeout=60))


async def adapt_repeatedly(caller: Caller, observations: Observations, until: float) -> None:
    """Run jobs one after another."""
    while time.monotonic() < until:
        job = adapt(caller, until, observations.jobs)
        await observations.observe("adapt", OK | {StatusCode.FAILED_PRECONDITION}, job)


async def watch_repeatedly(caller: Caller, observations: Observations, until: float) -> None:
    """Watch the newest job for a while, again and again."""
    expected = OK | {StatusCode.CANCELLED, StatusCode.DEADLINE_EXCEEDED}
    while time.monotonic() < until:
        await observations.observe("watch", expected, watch_and_cancel(caller))


async def sample_memory(pid: int, observations: Observations, until: float) -> None:
    """Sample the server's memory, without that of the trainer processes."""
    process = psutil.Process(pid)
    while (now := time.monotonic()) < until:
        observations.memory.append((now, process.memory_info().rss))
        await asyncio.sleep(0.25)


async def soak(server: Server, ids: list[str], *, seconds: float, in_flight: int, seed: int) -> Observations:
    """Run all loops for some seconds."""
    observations, until = Observations(), time.monotonic() + seconds
    texts = [example.text for example in read_examples(EXAMPLES / "dev.jsonl")]
    loops: list[Callable[[Caller, Observations, float], Awaitable[None]]] = [call_repeatedly] * in_flight
    loops += [adapt_repeatedly, watch_repeatedly, watch_repeatedly]
    loops.append(lambda caller, observations, until: swap_repeatedly(caller, observations, ids, until))
    async with grpc.aio.insecure_channel(server.target) as channel:
        await asyncio.gather(
            sample_memory(server.pid, observations, until),
            *(loop(Caller.over(channel, texts, seed + index), observations, until) for index, loop in enumerate(loops)),
        )
    return observations


def medians_by_tenth(memory: list[tuple[float, int]]) -> list[float]:
    """Return the median of each tenth of the samples, in MiB."""
    tenth = len(memory) // 10
    parts = (memory[index * tenth : (index + 1) * tenth] for index in range(10))
    return [round(statistics.median(rss for _, rss in part) / 2**20, 1) for part in parts]


def read_errors(log: Path) -> list[dict[str, Any]]:
    """Return the errors of a server's log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    return [line for line in lines if line["level"] in {"error", "critical"}]


@contextmanager
def copied_store(work: Path, ids: list[str]) -> Iterator[Path]:
    """Give a copy of the store in *work*, because jobs publish into it."""
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        store, original = Path(scratch) / "store", Store(work / "store")
        for checkpoint_id in ids:
            shutil.copytree(original.get(checkpoint_id).path, store / "checkpoints" / checkpoint_id)
        shutil.copy(original.root / "aliases.json", store)
        yield store


def main() -> None:
    """Run the soak test and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--in-flight", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".work/swap"))
    arguments = parser.parse_args()
    settings = {"seconds": arguments.seconds, "in_flight": arguments.in_flight, "seed": arguments.seed}
    ids, log = train_checkpoints(arguments.work), arguments.work / "soak.log"
    # At the lowest priority a job would never end under continuous load.
    with copied_store(arguments.work, ids) as store, serving(store, "--trainer-niceness", "5", log=log) as server:
        Random(arguments.seed).shuffle(ids)
        observations = asyncio.run(soak(server, ids, **settings))
    errors = read_errors(log)
    report.write(
        "soak",
        settings=settings,
        figures=observations.figures(len(errors)),
        codes=observations.codes_by_call(),
        memory_mib=medians_by_tenth(observations.memory),
        unexpected=(observations.unexpected + observations.jobs.failures)[:10],
        errors=errors[:10],
    )


if __name__ == "__main__":
    main()

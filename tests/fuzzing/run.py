"""Play many cases against one world, some concurrently, and collect the problems."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from fuzzing.calling import HANGS, UNHEARD, Caller, Outcome, never_ends
from fuzzing.canary import Canary
from fuzzing.cases import INFER, Case
from fuzzing.metadata import TOKENS
from fuzzing.methods import METHODS
from fuzzing.world import World, indiscretions, log_of, opened, strangers
from twofold import TwofoldError
from twofold_server.security.authorization import REQUIRED_SCOPES

PATIENCE = 240.0
"""Seconds within which whatever is asked has to end. It takes milliseconds, but promotions take turns, and come last for a CPU."""
_EXPECTED = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    UNHEARD,
    *("BYTES", "NOTHING", *(f"HTTP_{number}" for number in (200, 400, 401, 403, 404, 405, 414, 431, 501, 505))),
}
_REFUSED = {UNHEARD, "UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED"}
_BUGS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "HTTP_500"}


@dataclass(frozen=True)
class Problem:
    """A problem of a case, or of the world at its end."""

    kind: str
    message: str
    case: Case | None = None


@dataclass
class Tally:
    """The counters of a run."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    slowest: list[tuple[float, str, str]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """The server's bytes, four times a second."""
    in_flight: dict[str, Case] = field(default_factory=dict)
    canary: int = 0
    canary_slowest: float = 0.0

    def note(self, case: Case, outcome: Outcome, *, tokens: bool) -> None:
        """Count a case and judge its outcome."""
        self.codes[
            case.path if case.path in METHODS or case.path.startswith("tcp:") else "elsewhere", outcome.code
        ] += 1
        self.slowest = sorted([*self.slowest, (round(outcome.seconds, 2), case.name, case.path)], reverse=True)[:5]
        if kind := judge(case, outcome, tokens=tokens):
            self.problems.append(Problem(kind, f"{outcome.code} {outcome.message[:300]}", case))

    @property
    def rss_growth(self) -> float:
        """Return the memory in the last tenth of the time, relative to the second tenth."""
        tenth = len(self.memory) // 10
        if not tenth:
            return 1.0
        return statistics.median(self.memory[-tenth:]) / statistics.median(self.memory[tenth : 2 * tenth])


def judge(case: Case, outcome: Outcome, *, tokens: bool) -> str:
    """Return the problem of a case's outcome, or an empty string."""
    code = outcome.code
    if code == HANGS:
        return "hang"
    if code in _BUGS:
        return "internal"
    if tokens and code not in _REFUSED and not _may(case):
        return "let in"
    if code == "CANCELLED" and (case.play != "whole" or never_ends(case)):
        return ""
    if code == "DEADLINE_EXCEEDED" and (case.timeout is not None or case.path == INFER):
        return ""
    return "" if code in _EXPECTED else "unexpected"


def _may(case: Case) -> bool:
    """Return whether a case's caller may call its method. Anybody may call an unknown method."""
    need = REQUIRED_SCOPES.get(case.path, "open")
    scopes = TOKENS.get(case.caller, frozenset())
    return need == "open" or (need == "token" and bool(scopes)) or need in scopes


def fuzz(world_kind: str, cases: Iterable[Case], *, at_once: int, tell: Callable[[Tally], None]) -> Tally:
    """Play cases in a new world, and check it at the end; *tell* gets the progress every few seconds."""
    tally, jobs = Tally(), set()
    with tempfile.TemporaryDirectory(prefix="twofold-fuzz-") as made:
        root = Path(made)
        try:
            with opened(world_kind, root) as world:
                asyncio.run(run(world, cases, tally, at_once=at_once, tell=tell))
                jobs = world.jobs()
        except (RuntimeError, TwofoldError) as error:  # It ended with an exit code, or does not answer any more.
            tally.problems.append(Problem("crash", str(error)))
        tally.problems += [Problem("left over", stranger) for stranger in strangers(root, jobs)]
        tally.problems += [Problem("log", indiscretion) for indiscretion in indiscretions(log_of(root))]
    return tally


async def run(
    world: World, cases: Iterable[Case], tally: Tally, *, at_once: int, tell: Callable[[Tally], None]
) -> None:
    """Play cases against a world, and count. A crash ends the run, and the cases in flight become problems."""
    tokens = bool(world.known.tokens)
    canary = Canary(world, PATIENCE)
    waiting = iter(cases)
    async with grpc.aio.insecure_channel(
        world.server.target, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        caller = Caller(channel, world.ports, world.known, PATIENCE)

        async def work() -> None:
            for case in waiting:
                if not world.process.is_running() or world.process.status() == psutil.STATUS_ZOMBIE:
                    return
                tally.in_flight[case.name] = case
                with suppress(ConnectionError):  # It was there a moment ago: the next look tells.
                    tally.note(case, await caller.play(case), tokens=tokens)
                    del tally.in_flight[case.name]

        await canary.ask(channel)
        async with _beside(canary.sing(channel, 0.5), _watch(world, tally), _report(tally, tell)):
            await asyncio.gather(*(work() for _ in range(at_once)))
        if world.process.is_running() and world.process.status() != psutil.STATUS_ZOMBIE:
            await canary.ask(channel)
            canary.look_at_metrics()
        else:
            tally.problems += [Problem("crash", "the server is gone", case) for case in tally.in_flight.values()]
    tally.canary, tally.canary_slowest = canary.answered, canary.slowest
    tally.problems += [Problem("wrong", message) for message in canary.wrong]


@asynccontextmanager
async def _beside(*works: object) -> AsyncIterator[None]:
    """Run a task until the block ends, and raise its error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise ended


async def _watch(world: World, tally: Tally) -> None:
    with suppress(psutil.NoSuchProcess):
        while True:
            tally.memory.append(world.process.memory_info().rss)
            await asyncio.sleep(0.25)
    await asyncio.Event().wait()


async def _report(tally: Tally, tell: Callable[[Tally], None]) -> None:
    while True:
        await asyncio.sleep(5)
        tell(tally)


def by_method(codes: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Return the counts of status codes, by method."""
    actual: dict[str, dict[str, int]] = {}
    for (path, code), count in sorted(codes.items()):
        actual.setdefault(path, {})[code] = count
    return actual


def split(cases: int) -> dict[str, range]:
    """Divide the cases among the worlds: most go to a server without tokens."""
    few, more = cases // 10, cases // 10 + cases // 5
    return {"open": range(more, cases), "tokens": range(few, more), "postgresql": range(few)}

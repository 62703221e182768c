"""The fuzzer: hostile calls to every method. See docs/security.md; `make fuzz` runs it."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from fuzzing.cases import Case, make_case
from fuzzing.run import Problem, Tally, by_method, fuzz, split
from support.postgresql import binaries

_MOST_GROWTH = 1.25
_LONG = 100_000
"""From so many cases on, the server has had time to come to rest, and its growth is judged."""


def main() -> int:
    """Play the cases, print the progress and a JSON line at the end; return 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the world: open, tokens or postgresql")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no case after so many, in each world"
    )
    parser.add_argument("--at-once", type=int, default=48, help="cases in flight")
    parser.add_argument("--case", type=Path, help="play this one, which an earlier run wrote")
    parser.add_argument(
        "--work", type=Path, default=Path(".work/fuzz"), help="where the cases are written that are wrong"
    )
    arguments = parser.parse_args()
    started_at, worlds = time.monotonic(), {}
    codes: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    for world_kind, numbers in split(arguments.cases).items():
        if arguments.only not in {"", world_kind} or (world_kind == "postgresql" and binaries() is None):
            print(f"{world_kind}: left out")
            continue
        cases: Iterable[Case] = (make_case(arguments.seed, number, tokens=world_kind == "tokens") for number in numbers)
        if arguments.case:
            cases = [msgspec.json.decode(arguments.case.read_bytes(), type=Case)]
        until = time.monotonic() + arguments.seconds
        cases = itertools.takewhile(lambda _, until=until: time.monotonic() < until, cases)
        tell = teller(world_kind, arguments.work)
        tally = fuzz(world_kind, cases, at_once=arguments.at_once, tell=tell)
        tell(tally)
        codes += tally.codes
        kinds.update(problem.kind for problem in tally.problems)
        worlds[world_kind] = {
            "cases": tally.codes.total(),
            "rss_growth": round(tally.rss_growth, 3),
            "canary": tally.canary,
            "canary_slowest": round(tally.canary_slowest, 2),
            "slowest": tally.slowest,
        }
    growth = max((world["rss_growth"] for world in worlds.values()), default=1.0)
    message = {
        "cases": codes.total(),
        "seconds": round(time.monotonic() - started_at),
        "crashes": kinds.pop("crash", 0),
        "hangs": kinds.pop("hang", 0),
        "internal": kinds.pop("internal", 0),
        "others": dict(kinds),
        "rss_growth": growth,
        "seed": arguments.seed,
        "worlds": worlds,
        "by_method": by_method(codes),
    }
    print(json.dumps(message))
    wrong = any(message[name] for name in ("crashes", "hangs", "internal", "others"))
    return int(wrong or (arguments.cases >= _LONG and growth > _MOST_GROWTH))


def teller(world_kind: str, directory: Path) -> Callable[[Tally], None]:
    """Return a function that prints the progress, and every problem once."""
    started_at, shown = time.monotonic(), 0

    def tell(tally: Tally) -> None:
        nonlocal shown
        done, memory = tally.codes.total(), tally.memory[-1] / 2**20 if tally.memory else 0
        rate, wrong = done / (time.monotonic() - started_at), len(tally.problems)
        print(f"{world_kind:10} {done:7} cases {rate:6.0f}/s {memory:6.0f} MiB {wrong:3} wrong", flush=True)
        for problem in tally.problems[shown:]:
            print(f"WRONG {write(problem, directory)}", flush=True)
        shown = wrong

    return tell


def write(problem: Problem, directory: Path) -> str:
    """Write a problem's case to a file, and return the text to print."""
    if problem.case is None:
        return f"{problem.kind}: {problem.message}"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{problem.case.name}.json"
    path.write_bytes(msgspec.json.encode(problem.case))
    return f"{problem.kind}: {problem.case.path}: {problem.message} [make fuzz CASE={path}]"


if __name__ == "__main__":
    sys.exit(main())

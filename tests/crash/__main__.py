"""The kill matrix: SIGKILL at every moment of a job. See docs/crashes.md; `make kill-matrix` runs it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from crash.kill_points import Point, all_points
from crash.scenario import make_world, tell
from support import tiny_models
from support.postgresql import postgresql_server


def main() -> int:
    """Run the points, print a line for each and a JSON line at the end; return 1 if a point failed."""
    parser = argparse.ArgumentParser(prog="kill-matrix", description=__doc__)
    parser.add_argument("--only", default="", help="run the points whose names have this in them")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="run every N-th of those")
    parser.add_argument("--list", action="store_true", help="print their names and run none")
    arguments = parser.parse_args()
    points = [point for point in all_points() if arguments.only in point.name][:: arguments.every]
    if arguments.list:
        print("\n".join(point.name for point in points))
        return 0
    torch.set_num_threads(1)  # Small tensors are computed fastest by one.
    started_at, failures, states = time.monotonic(), 0, dict.fromkeys(("succeeded", "failed"), 0)
    print(f"{'point':55} {'seconds':>7}  {'job':10} {'phases':>6}  what is wrong")
    for point, seconds, actual in run(points):
        print(f"{point.name:55} {seconds:7.0f}  {actual}", flush=True)
        wrong = actual.startswith("WRONG")
        failures += wrong
        if not wrong:
            states[actual.split()[0]] += 1
    databases = {kind: sum(point.database == kind for point in points) for kind in ("sqlite", "postgresql")}
    message = {"kill_points": len(points), "failed": failures, **databases, "jobs": states}
    print(json.dumps({**message, "seconds": round(time.monotonic() - started_at)}))
    return int(failures > 0)


def run(points: list[Point]) -> Iterator[tuple[Point, float, str]]:
    """Run the points one after the other, and yield their results."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twofold-crash-")))
        server = None
        if any(point.database == "postgresql" for point in points):
            server = stack.enter_context(postgresql_server())
        world = make_world(root / "undisturbed", tiny_models.make_base_store(root))
        for number, point in enumerate(points):
            started_at = time.monotonic()
            database = server.make_database() if server and point.database == "postgresql" else None
            directory = root / f"point-{number}"
            try:
                outcome = tell(point, directory, world, database)
                actual = f"{outcome.state:10} {outcome.phases:6d}"
            except Exception as error:  # noqa: BLE001 -- the other points are to be seen, too.
                traceback.print_exc()
                log = directory / "server.log"
                print(log.read_text(encoding="utf-8")[-3000:] if log.exists() else "", file=sys.stderr)
                actual = f"WRONG: {type(error).__name__}: {error}"
            yield point, time.monotonic() - started_at, actual


if __name__ == "__main__":
    sys.exit(main())

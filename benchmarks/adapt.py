"""What adaptation costs the tasks that were there before: eleven scenarios, the classic methods and ours.

    python -m benchmarks.adapt --sets DIRECTORY --scorer SCORE.py [--size standard|full|quick] [--work DIRECTORY]
                               [--scenarios NAME,...] [--rows NAME,...] [--again] [--seeds 0,1,2] [--jobs 1]

DIRECTORY holds scenarios.json and the data sets that it names. Base checkpoints are trained once and kept in --work. A
cell (one scenario, one row, one seed) runs in a process of its own and is written to the results at once; one that is there
already, measured under the same settings, is not run again unless --again asks for it. With several seeds each row is run
as often, from the same base; figures and tables are of the means, for one run may be off by a point or, where few examples
teach, by several. With --jobs N, N cells run at a
time and share the cores; their seconds are then those of a busy machine, their CPU seconds are not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.adaptation.base_checkpoints import BasePlan, digest_weights, ensure_base, plan_base
from benchmarks.adaptation.hyperparameters import DEFAULT
from benchmarks.adaptation.methods import CLASSICS, OVERVIEW, ROWS, TWINS, find_row, is_run
from benchmarks.adaptation.progress import remaining_seconds, spell
from benchmarks.adaptation.results import Key, name_results, read_cells, select_current, select_left, write_cells
from benchmarks.adaptation.runs import Cell, digest_settings
from benchmarks.adaptation.scenarios import Scenario, ScenarioError, read_scenarios
from benchmarks.adaptation.scorer import Scorer
from benchmarks.adaptation.sizes import NAMES, Size, choose_size
from benchmarks.adaptation.summary import summarise
from benchmarks.adaptation.table import make_overview, make_tables

BASE_SEED = 0
"""Bases are trained with one seed: what seeds are to show is by how much an adaptation is off by chance."""
LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""One a base: of all cells that wait for the same one, one trains it. Bases train with a thread each, side by side."""


@dataclass(frozen=True)
class Benchmark:
    """Hold what a run of the benchmark was asked for."""

    root: Path
    scorer: Path
    work: Path
    size: Size
    scenarios: tuple[Scenario, ...]
    seeds: tuple[int, ...]

    @cached_property
    def bases(self) -> dict[str, BasePlan]:
        """The base of each scenario."""
        return {one.name: plan_base(self.root, one.base, self.size, seed=BASE_SEED) for one in self.scenarios}

    @cached_property
    def wanted(self) -> dict[Key, str]:
        """Every cell of the benchmark, with the digest of its settings."""
        return {
            (one.name, row, seed): digest_settings(self.settings(one, row, seed))
            for number, seed in enumerate(self.seeds)
            for one in self.scenarios
            for row in ROWS
            if is_run(row, one.name, again=number > 0)
        }

    def settings(self, scenario: Scenario, row: str, seed: int) -> dict[str, Any]:
        """Say what a cell depends on, beside the code."""
        definition = hashlib.sha256(msgspec.json.encode(scenario)).hexdigest()[:16]
        settings = {"scenario": definition, "base": self.bases[scenario.name].digest, "seed": seed}
        settings["caps"] = msgspec.to_builtins(self.size.step)
        if row in CLASSICS:
            settings["rates"] = asdict(DEFAULT)
        return settings

    def find(self, name: str) -> Scenario:
        """Return a scenario by name."""
        return next(one for one in self.scenarios if one.name == name)

    def measure(self, scenario: Scenario, row: str, seed: int) -> Cell:
        """Measure a cell in this process."""
        from benchmarks.adaptation.measurement import Run, measure, peak_memory_mib  # noqa: PLC0415 -- imports torch: seconds.
        from benchmarks.adaptation.method_interface import load_student  # noqa: PLC0415 -- the same.

        base = ensure_base(self.bases[scenario.name], self.work / "bases")
        run = Run(
            scenario=scenario,
            row=find_row(row),
            student=load_student(base),
            root=self.root,
            size=self.size,
            scorer=Scorer(self.scorer),
            work=self.directory(scenario.name, row, seed),
            seed=seed,
            rates=DEFAULT,
        )
        steps = measure(run)
        return Cell(
            **self.identity(scenario, row, seed),
            base_weights=digest_weights(base),
            steps=steps,
            verdict=", ".join(step.verdict for step in steps if step.verdict) or None,
            seconds=round(sum(step.seconds for step in steps), 2),
            cpu_seconds=round(sum(step.cpu_seconds for step in steps), 2),
            peak_memory_mib=round(peak_memory_mib()),
        )

    def identity(self, scenario: Scenario, row: str, seed: int) -> dict[str, Any]:
        """Return what a cell says of itself before it is measured."""
        return {
            "scenario": scenario.name,
            "row": row,
            "size": self.size.name,
            "seed": seed,
            "digest": self.wanted[scenario.name, row, seed],
            "settings": self.settings(scenario, row, seed),
        }

    def directory(self, scenario: str, row: str, seed: int) -> Path:
        """Return the directory of a cell's files."""
        return self.work / "cells" / f"{self.size.name}-{seed}" / scenario / row


def run_apart(benchmark: Benchmark, scenario: str, row: str, seed: int, arguments: list[str], *, threads: int) -> Cell:
    """Measure a cell in a process of its own; what goes wrong there becomes the cell's error."""
    try:
        base = benchmark.bases[scenario]
        with LOCKS[base.digest]:
            ensure_base(base, benchmark.work / "bases")
    except RuntimeError as error:  # The base could not be trained.
        return Cell(**benchmark.identity(benchmark.find(scenario), row, seed), error=str(error))
    directory = benchmark.directory(scenario, row, seed)
    directory.mkdir(parents=True, exist_ok=True)
    out, log = directory / "cell.json", directory / "log.txt"
    out.unlink(missing_ok=True)
    begun = time.monotonic()
    with log.open("wb") as file:
        command = [sys.executable, "-m", "benchmarks.adapt", *arguments, "--cell", f"{scenario}/{row}/{seed}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(command, check=False, stdout=file, stderr=file, env=environment).returncode
    shutil.rmtree(directory / "row", ignore_errors=True)  # Its checkpoints: half a gigabyte a cell.
    wall = round(time.monotonic() - begun, 2)
    if code == 0:
        return msgspec.structs.replace(msgspec.json.decode(out.read_bytes(), type=Cell), wall_seconds=wall)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    error = f"{lines[-1] if lines else 'no output'} (exit code {code})"
    tell(f"    see {log}")
    return Cell(**benchmark.identity(benchmark.find(scenario), row, seed), wall_seconds=wall, error=error)


def run(benchmark: Benchmark, chosen: list[Key], arguments: list[str], *, again: bool, jobs: int) -> int:
    """Measure what is left to measure, write the results after every cell, and print the tables."""
    name, wanted = name_results(benchmark.size.name), benchmark.wanted
    settings = {
        "size": benchmark.size.name,
        "caps": msgspec.to_builtins(benchmark.size.step),
        "seeds": benchmark.seeds,
        "rates": asdict(DEFAULT),
    }
    cells = read_cells(name)
    left = [key for key in (chosen if again else select_left(cells, wanted, chosen)) if key[1] not in TWINS]
    failed = 0
    done: list[Cell] = []
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run_apart, benchmark, *key, arguments, threads=threads): key for key in left}
        for number, finished in enumerate(as_completed(running), 1):
            scenario, row, seed = running[finished]
            cell = cells[scenario, row, seed] = finished.result()
            done.append(cell)
            failed += cell.error is not None
            waiting = [key for key in left if key not in {(one.scenario, one.row, one.seed) for one in done}]
            time_left = remaining_seconds(done, waiting)
            after = "" if time_left is None else f"; about {spell(time_left / jobs)} left"
            tell(f"[{number}/{len(left)}] {scenario} / {row} / seed {seed}: {describe(cell)}{after}")
            for twin in (one for one, other in TWINS.items() if other == row):
                cells[scenario, twin, seed] = msgspec.structs.replace(
                    cell, **benchmark.identity(benchmark.find(scenario), twin, seed)
                )
            write_cells(name, cells, wanted, settings, quiet=True)
    names = [one.name for one in benchmark.scenarios]
    for table in (
        make_tables(select_current(cells, wanted), names),
        make_overview(select_current(cells, wanted), names, OVERVIEW),
    ):
        print(table)
    write_cells(name, cells, wanted, settings)
    return 1 if failed else 0


def describe(cell: Cell) -> str:
    """Say in a line what came of a cell."""
    one = summarise(cell)
    if one is None:
        return f"failed: {cell.error}"
    kept = "" if one.retained is None else f", retained {one.retained.before:.1f} -> {one.retained.after:.1f}"
    protected = f"protected {one.protected.before:.1f} -> {one.protected.after:.1f}"
    return f"new {one.new:.1f}, {protected}{kept}; {cell.seconds:.0f} s, {cell.peak_memory_mib:.0f} MiB"


def tell(line: str) -> None:
    """Tell a person who waits."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark, or, as a process of its own, one cell of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".work/adapt"))
    parser.add_argument("--size", choices=NAMES, default="standard")
    parser.add_argument("--scenarios", type=split, help="names, separated by commas; all if left out")
    parser.add_argument("--rows", type=split, default=ROWS, help="the same")
    parser.add_argument("--again", action="store_true", help="run the chosen cells even if they are finished")
    parser.add_argument("--seeds", type=read_seeds, default=(0,), help="numbers, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="cells that run at a time")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        found = read_scenarios(arguments.sets)
    except ScenarioError as error:
        parser.error(str(error))
    size = choose_size(arguments.size, found.quick, first=arguments.first)
    scenarios = tuple(one for one in found.scenarios if size.scenarios is None or one.name in size.scenarios)
    benchmark = Benchmark(arguments.sets, arguments.scorer, arguments.work, size, scenarios, arguments.seeds)
    if arguments.cell:
        scenario, row, number = arguments.cell.split("/")
        cell = benchmark.measure(benchmark.find(scenario), row, seed := int(number))
        (benchmark.directory(scenario, row, seed) / "cell.json").write_bytes(msgspec.json.encode(cell))
        return 0
    names = [one.name for one in scenarios]
    chosen_names = arguments.scenarios or names
    for kind, given, known in (("scenario", chosen_names, names), ("row", arguments.rows, ROWS)):
        if unknown := [one for one in given if one not in known]:
            parser.error(f"{kind} {unknown[0]!r} is not known; write one of {', '.join(known)}")
    chosen = [key for key in benchmark.wanted if key[0] in chosen_names and key[1] in arguments.rows]
    shared = ["--sets", arguments.sets, "--scorer", arguments.scorer, "--work", arguments.work]
    shared += ["--size", arguments.size, "--seeds", ",".join(map(str, arguments.seeds))]
    shared += [] if arguments.first is None else ["--first", arguments.first]
    return run(benchmark, chosen, [str(one) for one in shared], again=arguments.again, jobs=arguments.jobs)


def read_seeds(numbers: str) -> tuple[int, ...]:
    """Read numbers that are separated by commas."""
    return tuple(dict.fromkeys(map(int, numbers.split(","))))


def split(names: str) -> tuple[str, ...]:
    """Read names that are separated by commas."""
    return tuple(names.split(","))


if __name__ == "__main__":
    sys.exit(main())

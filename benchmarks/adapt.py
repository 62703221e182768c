"""Measure what adaptation costs existing tasks: Twofold and classic continual-learning methods on eleven scenarios.

    python -m benchmarks.adapt --sets DIRECTORY --scorer SCORE.py [--size standard|full|quick] [--work DIRECTORY]
                               [--scenarios NAME,...] [--methods NAME,...] [--again] [--seeds 0,1,2] [--jobs 1]

DIRECTORY holds scenarios.json and its data sets. Base checkpoints are trained once and kept in --work. A run is one
scenario, one method and one seed; it has its own process, and its result is saved at once. A later invocation skips runs
that were measured with the same settings, unless --again is given. All seeds start from the same base. Figures and tables
show means over seeds, because a single run varies by about a point, and by several with few examples. With --jobs N, N
runs share the cores; their wall-clock seconds are then those of a busy machine, their CPU seconds are not affected.
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
from benchmarks.adaptation.hyperparameters import DEFAULTS
from benchmarks.adaptation.methods import (
    CLASSIC_METHODS,
    EQUIVALENT_METHODS,
    METHODS,
    OVERVIEW_METHODS,
    load_method,
    runs_on,
)
from benchmarks.adaptation.progress import format_duration, remaining_seconds
from benchmarks.adaptation.results import Key, name_results, read_runs, select_current, select_pending, write_runs
from benchmarks.adaptation.runs import Run, digest_settings
from benchmarks.adaptation.scenarios import Scenario, ScenarioError, read_scenarios
from benchmarks.adaptation.scorer import Scorer
from benchmarks.adaptation.sizes import NAMES, Size, choose_size
from benchmarks.adaptation.summary import summarise
from benchmarks.adaptation.table import make_overview, make_tables

BASE_SEED = 0
"""All bases are trained with one seed: the seeds measure the variance of the adaptation only."""
LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""One lock per base, so that only one of several runs trains it. Different bases train in parallel, with one thread each."""


@dataclass(frozen=True)
class Benchmark:
    """Hold the options of the benchmark."""

    root: Path
    scorer: Path
    work: Path
    size: Size
    scenarios: tuple[Scenario, ...]
    seeds: tuple[int, ...]

    @cached_property
    def bases(self) -> dict[str, BasePlan]:
        """The base of each scenario."""
        return {
            scenario.name: plan_base(self.root, scenario.base, self.size, seed=BASE_SEED) for scenario in self.scenarios
        }

    @cached_property
    def wanted(self) -> dict[Key, str]:
        """Every run of the benchmark, with the digest of its settings."""
        return {
            (scenario.name, method, seed): digest_settings(self.settings(scenario, method, seed))
            for index, seed in enumerate(self.seeds)
            for scenario in self.scenarios
            for method in METHODS
            if runs_on(method, scenario.name, again=index > 0)
        }

    def settings(self, scenario: Scenario, method: str, seed: int) -> dict[str, Any]:
        """Return everything that a run depends on, except the code."""
        definition = hashlib.sha256(msgspec.json.encode(scenario)).hexdigest()[:16]
        settings = {"scenario": definition, "base": self.bases[scenario.name].digest, "seed": seed}
        settings["caps"] = msgspec.to_builtins(self.size.step)
        if method in CLASSIC_METHODS:
            settings["hyperparameters"] = asdict(DEFAULTS)
        return settings

    def scenario(self, name: str) -> Scenario:
        """Return a scenario by name."""
        return next(scenario for scenario in self.scenarios if scenario.name == name)

    def measure(self, scenario: Scenario, method: str, seed: int) -> Run:
        """Measure a run in this process."""
        # Importing torch takes seconds.
        from benchmarks.adaptation.measurement import RunSetup, measure, peak_memory_mib  # noqa: PLC0415
        from benchmarks.adaptation.method_interface import load_learner  # noqa: PLC0415

        base = ensure_base(self.bases[scenario.name], self.work / "bases")
        setup = RunSetup(
            scenario=scenario,
            method=load_method(method),
            learner=load_learner(base),
            root=self.root,
            size=self.size,
            scorer=Scorer(self.scorer),
            work=self.directory(scenario.name, method, seed),
            seed=seed,
            hyperparameters=DEFAULTS,
        )
        steps = measure(setup)
        return Run(
            **self.identity(scenario, method, seed),
            base_weights=digest_weights(base),
            steps=steps,
            verdict=", ".join(step.verdict for step in steps if step.verdict) or None,
            seconds=round(sum(step.seconds for step in steps), 2),
            cpu_seconds=round(sum(step.cpu_seconds for step in steps), 2),
            peak_memory_mib=round(peak_memory_mib()),
        )

    def identity(self, scenario: Scenario, method: str, seed: int) -> dict[str, Any]:
        """Return the fields of a run that are known before it is measured."""
        return {
            "scenario": scenario.name,
            "method": method,
            "size": self.size.name,
            "seed": seed,
            "digest": self.wanted[scenario.name, method, seed],
            "settings": self.settings(scenario, method, seed),
        }

    def directory(self, scenario: str, method: str, seed: int) -> Path:
        """Return the directory of a run's files."""
        return self.work / "runs" / f"{self.size.name}-{seed}" / scenario / method


def measure_in_subprocess(
    benchmark: Benchmark, scenario: str, method: str, seed: int, arguments: list[str], *, threads: int
) -> Run:
    """Measure a run in a separate process. If it fails, the run holds the error."""
    try:
        base = benchmark.bases[scenario]
        with LOCKS[base.digest]:
            ensure_base(base, benchmark.work / "bases")
    except RuntimeError as error:  # The training of the base failed.
        return Run(**benchmark.identity(benchmark.scenario(scenario), method, seed), error=str(error))
    directory = benchmark.directory(scenario, method, seed)
    directory.mkdir(parents=True, exist_ok=True)
    out, log = directory / "run.json", directory / "log.txt"
    out.unlink(missing_ok=True)
    started_at = time.monotonic()
    with log.open("wb") as file:
        command = [sys.executable, "-m", "benchmarks.adapt", *arguments, "--run", f"{scenario}/{method}/{seed}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(command, check=False, stdout=file, stderr=file, env=environment).returncode
    shutil.rmtree(directory / "method", ignore_errors=True)  # Half a gigabyte of checkpoints per run.
    wall = round(time.monotonic() - started_at, 2)
    if code == 0:
        return msgspec.structs.replace(msgspec.json.decode(out.read_bytes(), type=Run), wall_seconds=wall)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    error = f"{lines[-1] if lines else 'no output'} (exit code {code})"
    log_line(f"    see {log}")
    return Run(**benchmark.identity(benchmark.scenario(scenario), method, seed), wall_seconds=wall, error=error)


def run_benchmark(benchmark: Benchmark, chosen: list[Key], arguments: list[str], *, again: bool, jobs: int) -> int:
    """Measure the pending runs, write the results after each, and print the tables. Return the exit code."""
    name, wanted = name_results(benchmark.size.name), benchmark.wanted
    settings = {
        "size": benchmark.size.name,
        "caps": msgspec.to_builtins(benchmark.size.step),
        "seeds": benchmark.seeds,
        "hyperparameters": asdict(DEFAULTS),
    }
    runs = read_runs(name)
    keys = chosen if again else select_pending(runs, wanted, chosen)
    pending = [key for key in keys if key[1] not in EQUIVALENT_METHODS]
    completed: dict[Key, Run] = {}
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(measure_in_subprocess, benchmark, *key, arguments, threads=threads): key for key in pending
        }
        for number, future in enumerate(as_completed(futures), 1):
            scenario, method, seed = key = futures[future]
            run = runs[key] = completed[key] = future.result()
            seconds = remaining_seconds(list(completed.values()), [key for key in pending if key not in completed])
            remaining = "" if seconds is None else f"; about {format_duration(seconds / jobs)} left"
            log_line(f"[{number}/{len(pending)}] {scenario} / {method} / seed {seed}: {describe(run)}{remaining}")
            for twin in (twin for twin, original in EQUIVALENT_METHODS.items() if original == method):
                identity = benchmark.identity(benchmark.scenario(scenario), twin, seed)
                runs[scenario, twin, seed] = msgspec.structs.replace(run, **identity)
            write_runs(name, runs, wanted, settings, quiet=True)
    names = [scenario.name for scenario in benchmark.scenarios]
    current = select_current(runs, wanted)
    print(make_tables(current, names))
    print(make_overview(current, names, OVERVIEW_METHODS))
    write_runs(name, runs, wanted, settings)
    return 1 if any(run.error is not None for run in completed.values()) else 0


def describe(run: Run) -> str:
    """Return the scores of a run, or its error, in a line."""
    summary = summarise(run)
    if summary is None:
        return f"failed: {run.error}"
    scores = f"new {summary.new:.1f}, protected {summary.protected.before:.1f} -> {summary.protected.after:.1f}"
    if summary.retained is not None:
        scores += f", retained {summary.retained.before:.1f} -> {summary.retained.after:.1f}"
    return f"{scores}; {run.seconds:.0f} s, {run.peak_memory_mib:.0f} MiB"


def log_line(line: str) -> None:
    """Write a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True, help="directory of scenarios.json and its data sets")
    parser.add_argument("--scorer", type=Path, required=True, help="script of the independent scorer")
    parser.add_argument("--work", type=Path, default=Path(".work/adapt"), help="directory of bases and logs")
    parser.add_argument("--size", choices=NAMES, default="standard")
    parser.add_argument("--scenarios", type=split, help="names separated by commas (default: all)")
    parser.add_argument("--methods", type=split, default=METHODS, help="names separated by commas (default: all)")
    parser.add_argument("--again", action="store_true", help="measure runs again that already have results")
    parser.add_argument("--seeds", type=read_seeds, default=(0,), help="numbers separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs")
    parser.add_argument("--first", type=int, help="smoke test: cut every list to its first N examples")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run the benchmark, or, in a subprocess, one run of it. Return the exit code."""
    parser = make_parser()
    arguments = parser.parse_args()
    try:
        file = read_scenarios(arguments.sets)
    except ScenarioError as error:
        parser.error(str(error))
    size = choose_size(arguments.size, file.quick, first=arguments.first)
    scenarios = tuple(
        scenario for scenario in file.scenarios if size.scenarios is None or scenario.name in size.scenarios
    )
    benchmark = Benchmark(arguments.sets, arguments.scorer, arguments.work, size, scenarios, arguments.seeds)
    if arguments.run:
        name, method, seed = arguments.run.split("/")
        run = benchmark.measure(benchmark.scenario(name), method, int(seed))
        (benchmark.directory(name, method, int(seed)) / "run.json").write_bytes(msgspec.json.encode(run))
        return 0
    names = [scenario.name for scenario in scenarios]
    chosen_names = arguments.scenarios or names
    for kind, values, known in (("scenario", chosen_names, names), ("method", arguments.methods, METHODS)):
        if unknown := [value for value in values if value not in known]:
            parser.error(f"unknown {kind} {unknown[0]!r}; use one of {', '.join(known)}")
    chosen = [key for key in benchmark.wanted if key[0] in chosen_names and key[1] in arguments.methods]
    shared = ["--sets", arguments.sets, "--scorer", arguments.scorer, "--work", arguments.work]
    shared += ["--size", arguments.size, "--seeds", ",".join(map(str, arguments.seeds))]
    shared += [] if arguments.first is None else ["--first", arguments.first]
    return run_benchmark(benchmark, chosen, list(map(str, shared)), again=arguments.again, jobs=arguments.jobs)


def read_seeds(numbers: str) -> tuple[int, ...]:
    """Read distinct numbers separated by commas."""
    return tuple(dict.fromkeys(map(int, numbers.split(","))))


def split(names: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    return tuple(names.split(","))


if __name__ == "__main__":
    sys.exit(main())

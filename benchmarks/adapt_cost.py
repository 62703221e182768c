"""Measure the time of adaptation: epochs with and without caches, and a whole job compared with transformers.Trainer.

    python -m benchmarks.adapt_cost --sets DIRECTORY [--work DIRECTORY] [--examples 1000] [--epochs 5] [--rounds 3]

Both sides of a ratio are measured in interleaved rounds. The epochs are those of Twofold's stages, with rehearsal and
distillation. The time of transformers.Trainer is that of `Trainer.train()` alone; the time of the job covers everything from
the Adapt call to SUCCEEDED or REJECTED: process start, baselines, training, export, verification, gate and swap. Each round's
job has another seed, because early stopping changes the number of epochs, which is reported with the seconds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from twofold import Client, Example, Hyperparameters, JobEvent, JobState, ScoreMeasured, Span
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.examples import Example as StoredExample
from twofold_checkpoint.examples import write_examples
from twofold_checkpoint.protocol.job import Hyperparameters as JobHyperparameters
from twofold_checkpoint.protocol.job import TrainerJob, TrainingRequest
from twofold_checkpoint.store import Store
from twofold_server.testing import serving
from twofold_trainer.modeling.features import live
from twofold_trainer.modeling.model import restore, snapshot
from twofold_trainer.planning.plan import Plan, make_plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.optimization import make_stage_trainer
from twofold_trainer.training.stage_factory import make_stage_factory
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.train import grow_adapted_head

from benchmarks import report
from benchmarks.adaptation.base_checkpoints import ensure_base, plan_base
from benchmarks.adaptation.scenarios import gather, read_scenarios
from benchmarks.adaptation.sizes import choose_size
from benchmarks.processes import run_json

SCENARIO = "hwu64_to_restaurant8k_ner"


@dataclass(frozen=True, slots=True)
class Epochs:
    """Median seconds of an epoch over the same texts. *cache_fill* is the time to fill the prefix cache once."""

    full: float
    top: float
    top_cached: float
    probe: float
    cache_fill: float


def measure_epochs(plan: Plan, rounds: int) -> Epochs:
    """Time an epoch of all blocks, of the top two blocks with and without the cached prefix, and of the head alone."""
    stage_factory = make_stage_factory(plan, StopSignal())
    if plan.added:
        grow_adapted_head(plan, stage_factory.features)
    probe, everything, *_ = plan.stages
    top = replace(everything, blocks=min(2, everything.total_blocks))
    started_at = time.monotonic()
    cached = stage_factory.inputs(top)
    cache_fill = time.monotonic() - started_at
    uncached = live(plan.model, plan.encoder.settings.pad_id)
    stage_inputs: dict[str, tuple[Stage, StageInputs]] = {
        "full": (everything, replace(stage_factory.inputs(everything), source=uncached)),
        "top": (top, replace(cached, source=uncached)),
        "top_cached": (top, cached),
        "probe": (probe, stage_factory.inputs(probe)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in stage_inputs}
    for number in range(rounds):
        for name, (stage, inputs) in stage_inputs.items():
            seconds[name].append(time_epoch(plan, stage, inputs, seed=number))
            log_line(f"round {number + 1}: one epoch, {name}: {seconds[name][-1]:.2f} s")
    return Epochs(**{name: statistics.median(values) for name, values in seconds.items()}, cache_fill=cache_fill)


def time_epoch(plan: Plan, stage: Stage, inputs: StageInputs, *, seed: int) -> float:
    """Return the seconds of all steps of an epoch; the model is restored afterwards."""
    before = snapshot(plan.model, plan.model.state_dict())
    stage_trainer = make_stage_trainer(plan.model, stage, inputs)
    rng = random.Random(seed)
    started_at = time.monotonic()
    for step in inputs.pool.epoch(plan.recipe.batch_size, rng):
        stage_trainer.step(step)
    seconds = time.monotonic() - started_at
    plan.model.eval()
    restore(plan.model, before)
    return seconds


@dataclass(frozen=True, slots=True)
class JobTime:
    """The seconds of a whole job, the epochs that its blocks trained, its final state and reason, and the seconds per phase."""

    seconds: float
    epochs: int
    state: str
    reason: str
    phases: dict[str, float]


def run_job(
    base: Checkpoint,
    work: Path,
    train: Sequence[StoredExample],
    dev: Sequence[StoredExample],
    epochs: int,
    *,
    seed: int,
) -> JobTime:
    """Adapt over gRPC with AUTO and wait until the job ends."""
    shutil.rmtree(work, ignore_errors=True)
    store = Store(work / "store").create()
    shutil.copytree(base.path, store.root / "checkpoints" / base.id)
    store.promote(base.id, approve=True)
    with serving(store.root, log=work / "server.log") as server, Client(server.target) as client:
        started_at = time.monotonic()
        job = client.adapt(
            list(map(to_client, train)),
            list(map(to_client, dev)),
            head="ner",
            hyperparameters=Hyperparameters(epochs=epochs),
            seed=seed,
        )
        events = list(client.watch(job))
        seconds = time.monotonic() - started_at
        ended = client.job(job)
        if ended.state is JobState.SUCCEEDED and client.model().checkpoint_id == base.id:
            raise RuntimeError("the job succeeded, but the base is still live")
        phases = {phase.phase: round((phase.end_time - phase.start_time).total_seconds(), 2) for phase in ended.phases}
        return JobTime(seconds, count_epochs(events), str(ended.state), ended.reason, phases)


def count_epochs(events: Sequence[JobEvent]) -> int:
    """Return the number of epochs of the first stage that trained blocks: it is scored before the first and after each."""
    training = itertools.dropwhile(lambda event: event.phase != "train", events)
    stage = itertools.takewhile(lambda event: not event.message.startswith("Stage "), training)
    return sum(isinstance(event.payload, ScoreMeasured) for event in stage) - 1


def to_client(example: StoredExample) -> Example:
    """Convert an example to the client's type."""
    spans = (
        None
        if example.entities is None
        else tuple(Span(start=span.start, end=span.end, type=span.type) for span in example.entities)
    )
    return Example(text=example.text, label=example.label, entities=spans)


def run_transformers_trainer(base: Checkpoint, work: Path, train: Path, epochs: int) -> float:
    """Fine-tune the same backbone on the same examples with transformers.Trainer and return the seconds of train()."""
    options = ("--checkpoint", base.path, "--train", train, "--epochs", epochs, "--out", work / "transformers")
    return float(run_json("transformers_trainer", *options)["seconds"])


def interleave(rounds: int, *measurements: Callable[[], float]) -> list[float]:
    """Run the measurements in turns and return the median of each."""
    seconds = [[measure() for measure in measurements] for _ in range(rounds)]
    return [statistics.median(values) for values in zip(*seconds, strict=True)]


def log_line(line: str) -> None:
    """Write a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Setup:
    """Hold the base, the data of the scenario's step and the directory that all measurements share."""

    base: Checkpoint
    train: tuple[StoredExample, ...]
    dev: tuple[StoredExample, ...]
    work: Path
    epochs: int

    @classmethod
    def prepare(cls, root: Path, work: Path, *, examples: int, epochs: int) -> Setup:
        """Train the base if it is missing, and write the examples."""
        file = read_scenarios(root)
        scenario = next(scenario for scenario in file.scenarios if scenario.name == SCENARIO)
        size = choose_size("standard", file.quick)
        base = ensure_base(plan_base(root, scenario.base, size, seed=0), work / "bases")
        (step,) = scenario.steps
        setup = cls(base, gather(root, step.train, examples), gather(root, step.dev, 200), work / "cost", epochs)
        setup.work.mkdir(parents=True, exist_ok=True)
        write_examples(setup.work / "train.jsonl", setup.train)
        write_examples(setup.work / "dev.jsonl", setup.dev)
        return setup

    def plan(self) -> Plan:
        """Return the plan of a job, to measure its epochs in this process."""
        job = TrainerJob(
            id="cost",
            store=str(self.base.path.parent.parent),
            base=self.base.id,
            train=str(self.work / "train.jsonl"),
            dev=str(self.work / "dev.jsonl"),
            request=TrainingRequest(head="ner", freeze="head", hyperparameters=JobHyperparameters(epochs=self.epochs)),
        )
        return make_plan(job)


def measure_jobs(setup: Setup, rounds: int) -> tuple[list[JobTime], float, float]:
    """Run whole jobs and transformers.Trainer in turns; return the jobs and the median seconds of both."""
    jobs: list[JobTime] = []

    def measure_job() -> float:
        job = run_job(setup.base, setup.work / "job", setup.train, setup.dev, setup.epochs, seed=len(jobs))
        jobs.append(job)
        log_line(f"job: {job.seconds:.1f} s, {job.epochs} epochs, {job.state}: {job.phases}")
        return job.seconds

    def measure_trainer() -> float:
        seconds = run_transformers_trainer(setup.base, setup.work, setup.work / "train.jsonl", setup.epochs)
        log_line(f"transformers.Trainer: {seconds:.1f} s")
        return seconds

    job_seconds, trainer_seconds = interleave(rounds, measure_job, measure_trainer)
    return jobs, job_seconds, trainer_seconds


def main() -> None:
    """Measure epochs, then whole jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".work/adapt"))
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5, help="of the job's stages and of transformers.Trainer")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    setup = Setup.prepare(arguments.sets, arguments.work, examples=arguments.examples, epochs=arguments.epochs)
    epochs = measure_epochs(setup.plan(), arguments.rounds)
    jobs, job_seconds, trainer_seconds = measure_jobs(setup, arguments.rounds)
    report.write(
        "adapt-cost",
        settings={
            "scenario": SCENARIO,
            "examples": len(setup.train),
            "epochs": arguments.epochs,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
        },
        figures={
            "cached_epoch_speedup": round(epochs.full / epochs.top_cached, 2),
            "cached_over_uncached_top": round(epochs.top / epochs.top_cached, 2),
            "probe_epoch_speedup": round(epochs.full / epochs.probe, 1),
            "job_over_trainer": round(job_seconds / trainer_seconds, 3),
            "job_seconds": round(job_seconds, 1),
            "trainer_seconds": round(trainer_seconds, 1),
        },
        epochs=asdict(epochs),
        jobs=[asdict(job) for job in jobs],
    )


if __name__ == "__main__":
    main()

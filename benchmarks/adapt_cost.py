"""What an adaptation costs in time: epochs with and without caches, and a whole job beside transformers' own Trainer.

    python -m benchmarks.adapt_cost --sets DIRECTORY [--work DIRECTORY] [--examples 1000] [--epochs 5] [--rounds 3]

The two sides of each ratio are measured in turns in one run. Epochs are those of the product's own stages, with
rehearsal and distillation. Of the peer only `Trainer.train()` is counted; of the job everything, from the call of Adapt
to the state SUCCEEDED or REJECTED: starting the process, baselines, training, export, proofs, gate and swap. Each round's
job has a seed of its own, for one that dev ends early takes less: how many epochs each trained stands beside its seconds.
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
from twofold_checkpoint.protocol.job import Hyperparameters as Asked
from twofold_checkpoint.protocol.job import TrainerJob
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
from twofold_trainer.training.train import grow

from benchmarks import report
from benchmarks.adaptation.base_checkpoints import ensure_base, plan_base
from benchmarks.adaptation.scenarios import Caps, Scenario, gather, read_scenarios
from benchmarks.adaptation.sizes import choose_size
from benchmarks.processes import run_json

SCENARIO = "hwu64_to_restaurant8k_ner"


@dataclass(frozen=True, slots=True)
class Epochs:
    """Median seconds of one epoch over the same texts. *filled* is what the cache of the boundary costs, once."""

    full: float
    top: float
    top_cached: float
    probe: float
    filled: float


def measure_epochs(plan: Plan, rounds: int) -> Epochs:
    """Time an epoch of everything, of the top two blocks with and without the cached prefix, and of the probe."""
    stage_factory = make_stage_factory(plan, StopSignal())
    if plan.added:
        grow(plan, stage_factory.features)
    probe, everything, *_ = plan.stages
    top = replace(everything, blocks=min(2, everything.of))
    begun = time.monotonic()
    cached = stage_factory.inputs(top)
    filled = time.monotonic() - begun
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
            tell(f"round {number + 1}: one epoch, {name}: {seconds[name][-1]:.2f} s")
    return Epochs(**{name: statistics.median(some) for name, some in seconds.items()}, filled=filled)


def time_epoch(plan: Plan, stage: Stage, inputs: StageInputs, *, seed: int) -> float:
    """Take every step of one epoch, put the model back, and say how long the steps took."""
    before = snapshot(plan.model, plan.model.state_dict())
    stage_trainer = make_stage_trainer(plan.model, stage, inputs)
    chance = random.Random(seed)
    begun = time.monotonic()
    for step in inputs.pool.epoch(plan.recipe.batch_size, chance):
        stage_trainer.step(step)
    seconds = time.monotonic() - begun
    plan.model.eval()
    restore(plan.model, before)
    return seconds


@dataclass(frozen=True, slots=True)
class JobTime:
    """Seconds of a whole job, how it ended, the epochs that its blocks trained, and the seconds of its phases."""

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
    """Adapt over gRPC with AUTO, and wait until the candidate answers."""
    shutil.rmtree(work, ignore_errors=True)
    store = Store(work / "store").create()
    shutil.copytree(base.path, store.root / "checkpoints" / base.id)
    store.promote(base.id, approve=True)
    with serving(store.root, log=work / "server.log") as server, Client(server.target) as client:
        begun = time.monotonic()
        job = client.adapt(
            [to_client(one) for one in train],
            [to_client(one) for one in dev],
            head="ner",
            hyperparameters=Hyperparameters(epochs=epochs),
            seed=seed,
        )
        events = list(client.watch(job))
        seconds = time.monotonic() - begun
        ended = client.job(job)
        if ended.state is JobState.SUCCEEDED and client.model().checkpoint_id == base.id:
            raise RuntimeError("the job succeeded, and the base still answers")
        phases = {one.phase: round((one.end_time - one.start_time).total_seconds(), 2) for one in ended.phases}
        return JobTime(seconds, count_epochs(events), str(ended.state), ended.reason, phases)


def count_epochs(events: Sequence[JobEvent]) -> int:
    """Count the epochs of the first stage that trained blocks, which is scored before the first and after each."""
    training = itertools.dropwhile(lambda event: event.phase != "train", events)
    stage = itertools.takewhile(lambda event: not event.message.startswith("Stage "), training)
    return sum(isinstance(event.payload, ScoreMeasured) for event in stage) - 1


def to_client(example: StoredExample) -> Example:
    """Write an example in the client's own type."""
    spans = (
        None
        if example.entities is None
        else tuple(Span(start=one.start, end=one.end, type=one.type) for one in example.entities)
    )
    return Example(text=example.text, label=example.label, entities=spans)


def run_peer(base: Checkpoint, work: Path, train: Path, epochs: int) -> float:
    """Fine-tune the same backbone on the same examples with transformers.Trainer; returns the seconds of train()."""
    options = ("--checkpoint", base.path, "--train", train, "--epochs", epochs, "--out", work / "peer")
    return float(run_json("transformers_trainer", *options)["seconds"])


def in_turns(rounds: int, *sides: Callable[[], float]) -> list[float]:
    """Run the sides in turns and return the median of each."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for own, side in zip(taken, sides, strict=True):
            own.append(side())
    return [statistics.median(own) for own in taken]


def find(root: Path) -> tuple[Scenario, Caps]:
    """Return the scenario, and the caps of its base."""
    found = read_scenarios(root)
    size = choose_size("standard", found.quick)
    return next(one for one in found.scenarios if one.name == SCENARIO), size.base


def tell(line: str) -> None:
    """Tell a person who waits."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure epochs, then whole jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".work/adapt"))
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5, help="of the job's stages, and of the peer")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    scenario, _ = find(arguments.sets)
    size = choose_size("standard", read_scenarios(arguments.sets).quick)
    base = ensure_base(plan_base(arguments.sets, scenario.base, size, seed=0), arguments.work / "bases")
    (step,) = scenario.steps
    train, dev = gather(arguments.sets, step.train, arguments.examples), gather(arguments.sets, step.dev, 200)
    work = arguments.work / "cost"
    work.mkdir(parents=True, exist_ok=True)
    write_examples(work / "train.jsonl", train)
    write_examples(work / "dev.jsonl", dev)
    store = base.path.parent.parent
    job = TrainerJob(
        id="cost",
        store=str(store),
        base=base.id,
        train=str(work / "train.jsonl"),
        dev=str(work / "dev.jsonl"),
        head="ner",
        freeze="head",
        hyperparameters=Asked(epochs=arguments.epochs),
    )
    epochs = measure_epochs(make_plan(job), arguments.rounds)
    jobs: list[JobTime] = []

    def ours() -> float:
        jobs.append(run_job(base, work / "job", train, dev, arguments.epochs, seed=len(jobs)))
        tell(f"job: {jobs[-1].seconds:.1f} s, {jobs[-1].epochs} epochs, {jobs[-1].state}: {jobs[-1].phases}")
        return jobs[-1].seconds

    def theirs() -> float:
        seconds = run_peer(base, work, work / "train.jsonl", arguments.epochs)
        tell(f"transformers.Trainer: {seconds:.1f} s")
        return seconds

    job_seconds, peer_seconds = in_turns(arguments.rounds, ours, theirs)
    report.write(
        "adapt-cost",
        settings={
            "scenario": SCENARIO,
            "examples": len(train),
            "epochs": arguments.epochs,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
        },
        figures={
            "cached_epoch_speedup": round(epochs.full / epochs.top_cached, 2),
            "cached_over_uncached_top": round(epochs.top / epochs.top_cached, 2),
            "probe_epoch_speedup": round(epochs.full / epochs.probe, 1),
            "job_over_trainer": round(job_seconds / peer_seconds, 3),
            "job_seconds": round(job_seconds, 1),
            "trainer_seconds": round(peer_seconds, 1),
        },
        epochs=asdict(epochs),
        jobs=[asdict(one) for one in jobs],
    )


if __name__ == "__main__":
    main()

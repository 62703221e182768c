"""Twofold's own methods: the trainer as the server runs it."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from twofold_checkpoint.checkpoint import MANIFEST, MEMORY, STATISTICS, Checkpoint
from twofold_checkpoint.examples import Example, write_examples
from twofold_checkpoint.manifest import MemoryMode, other_head
from twofold_checkpoint.memory import write_memory
from twofold_checkpoint.protocol.events import Event, ExactVerified, PhaseStarted
from twofold_checkpoint.protocol.job import Exact, Hyperparameters, Statistical, TrainerJob, TrainingRequest
from twofold_checkpoint.store import Store
from twofold_trainer.adapt import make_candidate
from twofold_trainer.datasets.splits import Parts
from twofold_trainer.evaluation.evaluator import JobEvaluator
from twofold_trainer.evaluation.verdict import evaluate_candidate
from twofold_trainer.export.exactness import verify_exact
from twofold_trainer.export.memory import update_memory
from twofold_trainer.export.publish import publish, write_candidate
from twofold_trainer.modeling.freezing import is_untouched
from twofold_trainer.planning.plan import Plan, make_plan
from twofold_trainer.protection.covariances import save_covariances
from twofold_trainer.recipe import PROJECTION
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.train import train

from benchmarks.adaptation.method_interface import AdaptationResult, Learner, Method, Task, load_learner


def adapt(
    learner: Learner,
    task: Task,
    *,
    protection: str = "statistical",
    memory: MemoryMode = "examples",
    **settings: float | bool,
) -> AdaptationResult:
    """Adapt as a job of the trainer does. The candidate is scored whatever the gate's verdict, which is returned with it."""
    store, base = _private_store(learner, task.work, memory)
    plan = make_plan(_job(protection, base, store, task, settings))
    stop, phases = StopSignal(), [*plan.events()]
    figures = JobEvaluator(plan, stop)
    before = figures.score(plan.model, "before")
    stages_result = _run(
        train(plan, stop, lambda: evaluate_candidate(plan, before, figures.score(plan.model, "after"))), phases
    )
    after = figures.score(plan.model, "after")
    trained = {*stages_result.names, f"{task.head}.weight", f"{task.head}.bias"}
    exact = is_untouched(plan.model, task.head, trained)
    verdict = evaluate_candidate(plan, before, after, trained=bool(stages_result.completed_stages), exact=exact)
    with store.staging() as staged:
        candidate = make_candidate(plan, stages_result, after)
        texts = [example.text for example in (*plan.parts.gate, *plan.parts.dev, *plan.parts.train)]
        _run(write_candidate(candidate, staged, texts, stop), phases)
        texts = [example.text for example in (*plan.memory.gate, *plan.memory.dev, *plan.parts.gate, *plan.parts.dev)]
        verification = _verify(plan, staged, texts, stop) if exact else None
        checkpoint = publish(candidate, staged, store)
    details: dict[str, object] = {
        "reason": stages_result.reason,
        "completed_stages": [trained.stage.name for trained in stages_result.completed_stages],
        "gate": verdict.reason,
        "exact": exact,
        "phases": [event.phase for event in phases if isinstance(event, PhaseStarted)],
        "threads": torch.get_num_threads(),
    }
    if verification is not None:
        details |= {"logit_diff": verification.max_error, "compared_texts": verification.texts}
    return AdaptationResult(load_learner(checkpoint), verdict.verdict, details)


def _verify(plan: Plan, staged: Path, texts: Sequence[str], stop: StopSignal) -> ExactVerified:
    """Compare the protected head's graph of the candidate with that of the base."""
    return verify_exact(
        plan.base.path,
        staged,
        plan.encoder.encode(list(texts)),
        other_head(plan.request.head),
        (plan.base.manifest.labels, plan.labels),
        pad_id=plan.encoder.settings.pad_id,
        threads=torch.get_num_threads(),
        stop=stop,
    )


METHODS: dict[str, Method] = {
    **{name: partial(adapt, protection=name) for name in ("statistical", "exact", "auto")},
    "without_distillation": partial(adapt, distillation=0.0),
    "without_retention": partial(adapt, retention=0.0),
    "with_repair": partial(adapt, repair=0.25),
    "without_rehearsal": partial(adapt, rehearsal_ratio=0.0),
    "without_guard": partial(adapt, guard=False),
    "without_norms": partial(adapt, train_norms=False),
    "with_projection": partial(adapt, projection=PROJECTION),
    "memory_statistics": partial(adapt, memory="statistics"),
    "memory_none": partial(adapt, memory="none"),
}


def _private_store(learner: Learner, work: Path, memory: MemoryMode) -> tuple[Store, Checkpoint]:
    """Return a private store with the learner's checkpoint, converted to the given memory mode."""
    assert learner.checkpoint is not None, "Twofold's methods start from a checkpoint. This is a bug."
    store, base = Store(work / "store").create(), learner.checkpoint
    target = store.root / "checkpoints" / base.id
    if not target.exists():
        shutil.copytree(base.path, target)
    if memory == base.manifest.memory:
        return store, store.get(base.id)
    updated = update_memory(
        memory, learner.model, learner.encoder, memory=learner.memory, parts=Parts((), (), ()), seed=0
    )
    with store.staging() as staged:
        shutil.copytree(base.path, staged, dirs_exist_ok=True)
        write_memory(staged / MEMORY, updated.memory)
        if updated.statistics is not None:
            save_covariances(updated.statistics, staged / STATISTICS)
        (staged / MANIFEST).unlink()
        manifest = msgspec.structs.replace(base.manifest, id=f"{base.id}-{memory}", memory=memory)
        return store, store.publish(staged, manifest)


def _job(
    protection: str, base: Checkpoint, store: Store, task: Task, settings: Mapping[str, float | bool]
) -> TrainerJob:
    """Write the examples and return the job. Unset hyperparameters are the trainer's choice."""
    dev = task.work / "dev.jsonl"
    _write(task.work / "train.jsonl", task.train)
    _write(dev, task.dev)
    return TrainerJob(
        id=f"bench-{protection}",
        store=str(store.root),
        base=base.id,
        train=str(task.work / "train.jsonl"),
        dev=str(dev) if task.dev else None,
        request=TrainingRequest(
            head=task.head,
            freeze="head" if protection == "statistical" else "auto",
            protection=Exact() if protection == "exact" else Statistical(),
            label_policy="replace" if task.replaces else "append",
            hyperparameters=Hyperparameters(epochs=task.hyperparameters.epochs, **settings),  # type: ignore[arg-type] # By name.
            seed=task.seed,
        ),
    )


def _write(path: Path, examples: Sequence[Example]) -> None:
    """Write the examples with a text; a job rejects the others."""
    write_examples(path, [example for example in examples if example.text.strip()])


def _run(events: Generator[Event, None, Any], log: list[Event]) -> Any:
    """Collect a generator's events and return its value."""
    while True:
        try:
            log.append(next(events))
        except StopIteration as done:
            return done.value

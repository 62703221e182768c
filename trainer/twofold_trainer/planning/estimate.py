"""What a job would take, for a dry run: seconds, memory, and the smallest margin that could be proven."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from twofold_checkpoint.manifest import other_head
from twofold_checkpoint.protocol.events import NoteAdded

from twofold_trainer import recipe
from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.datasets.batching import chunks
from twofold_trainer.modeling.features import compute_features
from twofold_trainer.modeling.freezing import trainable_groups
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.scoring.noninferiority import provable_margin

TIMED = 128
"""Texts of the job that are run once to see how long one takes here."""
BACKWARD = 2.0
"""A backward pass costs about two forward passes."""
OVERHEAD_SECONDS = 30.0
"""Starting, exporting the graph, comparing it with the model and judging its int8 form. A MiniLM took 56 seconds for it on one
busy core; on two free ones it is taken to be about half."""
ADAM_BYTES = 4 * 5
"""Per trained parameter: gradient, two moments, and the copies of the first and the best state."""


@dataclass(frozen=True, slots=True)
class Work:
    """Hold what a job runs through the model. *trained* are the epochs' texts, each counted by its share of the blocks."""

    cached: int
    """Texts whose features are computed once."""
    trained: float
    judged: int
    """Texts that are scored, over all looks."""


def seconds(work: Work, per_text: float) -> float:
    """Return the seconds of a job where a forward pass takes *per_text* seconds for one text."""
    passes = work.cached + work.judged + (1 + BACKWARD) * work.trained
    return OVERHEAD_SECONDS + passes * per_text


def count_work(plan: Plan) -> Work:
    """Count what a plan's likely stages run. AUTO is counted with the rung that it aims at."""
    judges = len(plan.parts.dev) + len(plan.memory.dev)
    held_out = len(plan.parts.gate) + len(plan.memory.gate)
    cached, trained, looks = len(plan.new) + len(plan.recalled) + judges, 0.0, 0
    for number, stage in enumerate(stages := likely(plan)):
        pool, epochs = plan.pool(stage), stage.epochs(plan.recipe)
        if number and stage.follows is stages[number - 1]:  # What follows it as well shares what is kept for this one.
            cached += len(pool.new) + len(pool.rehearsed) + judges
        trained += epochs * (len(pool.new) + pool.drawn) * stage.blocks / stage.of
        looks += epochs if stage.blocks else 0
    return Work(
        cached=cached,
        trained=trained,
        judged=2 * held_out + looks * judges,
    )


def likely(plan: Plan) -> tuple[Stage, ...]:
    """Return the stages that a plan aims at."""
    stages = plan.stages
    if plan.job.freeze == "auto":
        stages = (*stages, plan.shared if plan.why_not_shared() is None else plan.forked)
    return (*stages, *plan.follow_ups(stages[-1])) if stages else ()


def memory_mib(plan: Plan) -> float:
    """Estimate the largest resident memory: what this process has now, caches, and the optimizer's state."""
    model, parameters = plan.model, dict(plan.model.named_parameters())
    most, kept = 0, 2  # What the heads read, and what enters the blocks that train.
    for stage in likely(plan):
        groups = trainable_groups(model, stage.heads, stage.blocks, norms=plan.recipe.train_norms)
        own = sum(parameters[name].numel() for group in groups for name in group.names)
        # A fork trains copies, which have to be made as well.
        most = max(most, own * (ADAM_BYTES + (4 if stage.forked else 0)))
        kept += stage.follows is not None
    caches = plan.feature_bytes * kept if plan.keeps_features else 0
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return float((now + most + caches) / 2**20)


def time_text(plan: Plan) -> float:
    """Run some texts of the job through the model and return the seconds of one."""
    encodings = sorted((target.encoding for target in plan.new[:TIMED]), key=lambda encoding: len(encoding.ids))
    pad_id = plan.encoder.settings.pad_id
    with torch.no_grad():
        compute_features(plan.model, encodings[: plan.recipe.batch_size], pad_id)  # The first pass is a slow one.
        started_at = time.perf_counter()
        for batch in chunks(encodings, plan.recipe.batch_size):
            compute_features(plan.model, batch, pad_id)
    return (time.perf_counter() - started_at) / max(1, len(encodings))


def describe(plan: Plan) -> Iterator[NoteAdded]:
    """Say what the job would take on this machine, and what it could prove."""
    spent = seconds(count_work(plan), time_text(plan))
    took = f"{spent:.0f} seconds" if spent < 120 else f"{spent / 60:.0f} minutes"
    yield NoteAdded(message=f"On this machine the job takes about {took} and {memory_mib(plan):.0f} MiB.")
    yield NoteAdded(message=describe_provable(len(annotated_for(plan.protected("gate"), other_head(plan.job.head)))))


def describe_provable(examples: int) -> str:
    """Say which margin so many protected examples could prove."""
    if not examples:
        return "Nothing is remembered or given by which a shared backbone could be proven whole."
    margin = 100 * provable_margin(examples, recipe.EXPECTED_FLIPS)
    return (
        f"By {examples} protected examples the smallest margin that can be proven for a shared backbone is "
        f"{margin:.1f} points, if one answer in {round(1 / recipe.EXPECTED_FLIPS)} changes."
    )

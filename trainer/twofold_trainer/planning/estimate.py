"""Estimates for a dry run: time, memory and the smallest provable margin of a job."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from twofold_checkpoint.protocol.events import NoteAdded

from twofold_trainer.datasets.batching import chunks
from twofold_trainer.modeling.features import compute_features, fits_in_memory
from twofold_trainer.modeling.freezing import trainable_groups
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stages import training_encodings
from twofold_trainer.scoring.noninferiority import EXPECTED_FLIPS, provable_margin

TIMED_TEXTS = 128
"""Texts of the job that are timed on this machine."""
BACKWARD_COST = 2.0
"""Cost of a backward pass, in forward passes."""
OVERHEAD_SECONDS = 30.0
"""Seconds for start-up, graph export, the parity check and the int8 evaluation. A MiniLM took 56 seconds on one busy core;
two idle cores are assumed to take about half."""
ADAM_BYTES = 4 * 5
"""Bytes per trained parameter: the gradient, two moments, and copies of the initial and the best state."""


@dataclass(frozen=True, slots=True)
class Work:
    """The number of texts that a job runs through the model. *trained* weights each text by the share of trained blocks."""

    cached: int
    """Texts whose features are computed once."""
    trained: float
    scored: int
    """Texts that are scored, summed over all evaluations."""


def estimate_seconds(work: Work, per_text: float) -> float:
    """Return the estimated seconds of a job, given *per_text* seconds per forward pass of one text."""
    passes = work.cached + work.scored + (1 + BACKWARD_COST) * work.trained
    return OVERHEAD_SECONDS + passes * per_text


def count_work(plan: Plan) -> Work:
    """Count the texts of a plan's likely stages; freeze mode "auto" counts the stage that it tries first after the probe."""
    dev_examples = len(plan.parts.dev) + len(plan.memory.dev)
    held_out = len(plan.parts.gate) + len(plan.memory.gate)
    cached, trained, evaluations = len(training_encodings(plan.all_stages)) + dev_examples, 0.0, 0
    for number, stage in enumerate(plan.stages):
        pool, epochs = stage.pool, stage.epochs
        if number and stage.follows is plan.stages[number - 1]:  # Both refit stages share one cache.
            cached += len(pool.new) + len(pool.rehearsed) + dev_examples
        trained += epochs * (len(pool.new) + pool.rehearsed_per_epoch) * stage.blocks / stage.total_blocks
        evaluations += epochs if stage.blocks else 0
    return Work(
        cached=cached,
        trained=trained,
        scored=2 * held_out + evaluations * dev_examples,
    )


def estimate_memory_mib(plan: Plan) -> float:
    """Estimate the peak resident memory in MiB: this process now, plus feature caches and optimizer state."""
    model, parameters = plan.model, dict(plan.model.named_parameters())
    largest_stage, cached_layers = 0, 2  # The heads' features, and the inputs of the trained blocks.
    for stage in plan.stages:
        groups = trainable_groups(model, stage.heads, stage.blocks, norms=plan.recipe.train_norms)
        stage_parameters = sum(parameters[name].numel() for group in groups for name in group.names)
        # A fork also allocates the copies that it trains.
        largest_stage = max(largest_stage, stage_parameters * (ADAM_BYTES + (4 if stage.forked else 0)))
        cached_layers += stage.follows is not None
    caches = plan.feature_bytes * cached_layers if fits_in_memory(plan.feature_bytes) else 0
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return float((now + largest_stage + caches) / 2**20)


def measure_seconds_per_text(plan: Plan) -> float:
    """Return the seconds of a forward pass per text, measured on texts of the job."""
    encodings = sorted((target.encoding for target in plan.new[:TIMED_TEXTS]), key=lambda encoding: len(encoding.ids))
    pad_id = plan.encoder.settings.pad_id
    with torch.no_grad():
        compute_features(plan.model, encodings[: plan.recipe.batch_size], pad_id)  # Warm-up: the first pass is slow.
        started_at = time.perf_counter()
        for batch in chunks(encodings, plan.recipe.batch_size):
            compute_features(plan.model, batch, pad_id)
    return (time.perf_counter() - started_at) / max(1, len(encodings))


def describe_estimate(plan: Plan) -> Iterator[NoteAdded]:
    """Yield notes with the time and memory of the job on this machine, and the smallest provable margin."""
    spent = estimate_seconds(count_work(plan), measure_seconds_per_text(plan))
    duration = f"{spent:.0f} seconds" if spent < 120 else f"{spent / 60:.0f} minutes"
    yield NoteAdded(
        message=f"On this machine the job takes about {duration} and {estimate_memory_mib(plan):.0f} MiB of memory."
    )
    yield NoteAdded(message=describe_provable(len(plan.protected_gate)))


def describe_provable(examples: int) -> str:
    """Return a sentence with the smallest margin that this number of protected examples can prove."""
    if not examples:
        return "There are no held-out examples to prove the protection of a shared backbone."
    margin = 100 * provable_margin(examples, EXPECTED_FLIPS)
    return (
        f"With {examples} protected examples, the smallest margin that can be proven for a shared backbone is "
        f"{margin:.1f} points, if one answer in {round(1 / EXPECTED_FLIPS)} changes."
    )

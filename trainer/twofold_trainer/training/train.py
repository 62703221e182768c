"""The training of a job: cache features, grow the head, and run the stages."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from twofold_checkpoint.protocol.events import Event, NoteAdded, PhaseStarted

from twofold_trainer.evaluation.gate import GateResult
from twofold_trainer.modeling.head_growth import class_means, clear_head, grow_head
from twofold_trainer.modeling.model import restore, snapshot
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.logit_offset import calibrate_new_label_bias
from twofold_trainer.training.snapshots import NO_SNAPSHOTS, ResumeSnapshots
from twofold_trainer.training.stage_setup import StageFactory
from twofold_trainer.training.stages import StagesResult, train_stages

Gate = Callable[[], GateResult]
"""Evaluates the gate on the current model."""
SAMPLED = 1000
"""Examples from which new rows are initialised if the features do not fit in memory."""


def train(
    plan: Plan, stop: StopSignal, gate: Gate, snapshots: ResumeSnapshots = NO_SNAPSHOTS
) -> Generator[Event, None, StagesResult]:
    """Cache the base model's features, add rows to the adapted head, and run the stages.

    A resumed trainer repeats everything but the stages, which is deterministic.
    """
    yield PhaseStarted(phase="cache")
    stage_factory = StageFactory(plan, stop)
    stage_factory.precompute()
    if plan.added:
        grow(plan, stage_factory)
    stages_result = yield from _train_stages(plan, plan.stages, stage_factory, stop, snapshots=snapshots)
    if plan.job.freeze != "auto" or stop.is_past_deadline:
        return stages_result
    return (yield from _continue_auto(plan, stage_factory, stages_result, stop, gate, snapshots=snapshots))


def _train_stages(
    plan: Plan,
    stages: tuple[Stage, ...],
    stage_factory: StageFactory,
    stop: StopSignal,
    *,
    snapshots: ResumeSnapshots,
    first: int = 0,
) -> Generator[Event, None, StagesResult]:
    after = plan.refit_stages(stages[-1]) if stages else ()
    stages_result = yield from train_stages(
        plan.model,
        (*stages, *after),
        plan.recipe,
        plan.pool,
        stage_factory.stage_inputs,
        dev_evaluator=stage_factory.dev_evaluator,
        seed=plan.job.seed,
        stop=stop,
        first=first,
        snapshots=snapshots,
    )
    if stages_result.completed_stages and plan.retained_labels and plan.added:
        retained_rows = plan.retained_labels if plan.job.head == "classifier" else 1 + 2 * plan.retained_labels
        source = stage_factory.source(stages_result.completed_stages[-1].stage)
        offset = calibrate_new_label_bias(
            plan.model, stage_factory.dev_evaluator, source, retained_rows, baseline=stage_factory.baseline_dev_score
        )
        if offset:
            yield NoteAdded(message=f"Added a bias of {offset:+g} logits to the new labels (best dev score).")
    return stages_result


def _continue_auto(
    plan: Plan,
    stage_factory: StageFactory,
    head_only: StagesResult,
    stop: StopSignal,
    gate: Gate,
    *,
    snapshots: ResumeSnapshots,
) -> Generator[Event, None, StagesResult]:
    """Continue freeze mode "auto" after the probe: train the shared backbone if it can pass the gate, else a fork."""
    model, why = plan.model, plan.shared_backbone_blocker()
    if why is None:
        before = snapshot(model, model.state_dict())
        shared = yield from _train_stages(plan, (plan.shared,), stage_factory, stop, snapshots=snapshots, first=1)
        if not shared.completed_stages:
            why = shared.reason
        else:
            verdict = gate()
            if verdict.verdict == "pass":
                return StagesResult(
                    (*head_only.completed_stages, *shared.completed_stages),
                    "the shared backbone passed the gate",
                )
            restore(model, before)
            why = f"with the shared backbone {verdict.reason}"
        if stop.is_past_deadline:
            return StagesResult(head_only.completed_stages, f"the time limit was reached, and {why}", complete=False)
        yield NoteAdded(message=f"Abandoned the shared backbone: {why}.")
    if not model.can_fork:
        return StagesResult(head_only.completed_stages, f"{why}, and this backbone cannot be forked")
    stage = plan.forked
    if model.branch is None:
        model.fork(plan.job.head, stage.blocks)
    forked = yield from _train_stages(plan, (stage,), stage_factory, stop, snapshots=snapshots, first=3)
    if not forked.completed_stages and not plan.base.manifest.branch:
        model.branch, model.branch_head = None, None
    completed = (*head_only.completed_stages, *forked.completed_stages)
    if not forked.completed_stages:
        return StagesResult(completed, f"{why}, and {forked.reason}")
    return StagesResult(completed, f"{why}, so the {plan.job.head} head got {stage.name}")


def grow(plan: Plan, stage_factory: StageFactory) -> None:
    """Append rows for the added labels to the adapted head, initialised with the class means of their examples."""
    head, model = plan.job.head, plan.model
    if not plan.retained_labels:
        clear_head(model, head)
    old, new = model.head(head).out_features, len(plan.added) * (1 if head == "classifier" else 2)
    sampled = plan.new if stage_factory.caches_features else plan.new[:SAMPLED]
    with torch.no_grad():
        seen = ((target, stage_factory.base_features([target.encoding])) for target in sampled)
        rows, centre = class_means(seen, head, range(old, old + new), plan.base.manifest.hidden_size)
    grow_head(model, head, rows, centre)

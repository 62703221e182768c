"""The training of a job: cache features, grow_adapted_head the head, and run the stages."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from twofold_checkpoint.protocol.events import Event, NoteAdded, PhaseStarted

from twofold_trainer.evaluation.gate import GateResult
from twofold_trainer.modeling.head_growth import class_means, clear_head, grow_head
from twofold_trainer.modeling.model import restore, snapshot
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.feature_store import FeatureStore
from twofold_trainer.training.logit_offset import calibrate_new_label_bias
from twofold_trainer.training.loop import StageRunner
from twofold_trainer.training.snapshots import NO_SNAPSHOTS, ResumeSnapshots
from twofold_trainer.training.stage_factory import StageFactory, make_stage_factory
from twofold_trainer.training.stages import StagesResult, train_stages

Gate = Callable[[], GateResult]
"""Evaluates the gate on the current model."""
MAX_GROWTH_EXAMPLES = 1000
"""Largest number of examples from which new rows are initialised if the features do not fit in memory."""


def train(
    plan: Plan, stop: StopSignal, gate: Gate, snapshots: ResumeSnapshots = NO_SNAPSHOTS
) -> Generator[Event, None, StagesResult]:
    """Cache the base model's features, add rows to the adapted head, and run the stages.

    A resumed trainer repeats everything but the stages, which is deterministic.
    """
    yield PhaseStarted(phase="cache")
    factory = make_stage_factory(plan, stop)
    if plan.added:
        grow_adapted_head(plan, factory.features)
    runner = StageRunner(plan.model, factory.dev_evaluator, plan.request.seed, stop, snapshots)
    if plan.request.freeze != "auto":
        return (yield from _train_stages(plan.stages, factory, runner))
    probe, *later = plan.stages
    probed = yield from _train_stages((probe,), factory, runner)
    if stop.is_past_deadline:
        return probed
    return (yield from _continue_auto(probed, later, factory, runner, gate))


def _train_stages(
    stages: Sequence[Stage], factory: StageFactory, runner: StageRunner
) -> Generator[Event, None, StagesResult]:
    """Run stages, and calibrate the new labels against the old ones if a stage was kept."""
    plan = factory.plan
    trained = yield from train_stages(runner, stages, factory.inputs)
    if trained.completed_stages and plan.retained_labels and plan.added:
        retained_rows = plan.retained_labels if plan.request.head == "classifier" else 1 + 2 * plan.retained_labels
        source = factory.features.source(trained.completed_stages[-1].stage)
        offset = calibrate_new_label_bias(
            plan.model, factory.dev_evaluator, source, retained_rows, baseline=factory.baseline_dev_score
        )
        if offset:
            yield NoteAdded(message=f"Added a bias of {offset:+g} logits to the new labels (best dev score).")
    return trained


def _continue_auto(
    probed: StagesResult, stages: Sequence[Stage], factory: StageFactory, runner: StageRunner, gate: Gate
) -> Generator[Event, None, StagesResult]:
    """Continue freeze mode "auto" after the probe: train the shared backbone if it can pass the gate, else a fork."""
    plan, model, why = factory.plan, factory.plan.model, factory.plan.shared_blocker
    if why is None:
        before = snapshot(model, model.state_dict())
        shared = yield from _train_stages(stages, factory, runner)
        if not shared.completed_stages:
            why = shared.reason
        else:
            result = gate()
            if result.verdict == "pass":
                completed = (*probed.completed_stages, *shared.completed_stages)
                return StagesResult(completed, "the shared backbone passed the gate")
            restore(model, before)
            why = f"with the shared backbone {result.reason}"
        if runner.stop.is_past_deadline:
            return StagesResult(probed.completed_stages, f"the time limit was reached, and {why}")
        yield NoteAdded(message=f"Abandoned the shared backbone: {why}.")
        stages = plan.fallback
    if not model.can_fork:
        return StagesResult(probed.completed_stages, f"{why}, and this backbone cannot be forked")
    if model.branch is None:
        model.fork(plan.request.head, stages[0].blocks)
    forked = yield from _train_stages(stages, factory, runner)
    if not forked.completed_stages and not plan.base.manifest.branch:
        model.branch, model.branch_head = None, None
    completed = (*probed.completed_stages, *forked.completed_stages)
    if not forked.completed_stages:
        return StagesResult(completed, f"{why}, and {forked.reason}")
    return StagesResult(completed, f"{why}, so the {plan.request.head} head got a {stages[0].name}")


def grow_adapted_head(plan: Plan, features: FeatureStore) -> None:
    """Append rows for the added labels to the adapted head, initialised with the class means of their examples."""
    head, model = plan.request.head, plan.model
    if not plan.retained_labels:
        clear_head(model, head)
    old, new = model.head(head).out_features, len(plan.added) * (1 if head == "classifier" else 2)
    examples = plan.new if features.is_caching else plan.new[:MAX_GROWTH_EXAMPLES]
    with torch.no_grad():
        pairs = ((target, features.base([target.encoding])) for target in examples)
        rows, mean_feature = class_means(pairs, head, range(old, old + new), plan.base.manifest.hidden_size)
    grow_head(model, head, rows, mean_feature)

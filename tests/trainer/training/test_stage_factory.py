"""The cached features of stages: their precision, and how long the base's features are valid."""

from __future__ import annotations

import random

import pytest
import torch
from trainer.conftest import MakeJob, planner_of
from twofold_checkpoint.protocol.job import Exact, Hyperparameters, Statistical
from twofold_trainer.modeling.features import live
from twofold_trainer.planning.plan import Plan, make_plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.optimization import make_stage_trainer
from twofold_trainer.training.stage_factory import StageFactory, make_stage_factory
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.train import grow_adapted_head

pytestmark = pytest.mark.slow

BLOCKS = {"heads": 0, "top block": 1, "all blocks": 3, "own copies": 3}


def prepare(make_job: MakeJob, name: str) -> tuple[Plan, Stage, StageFactory]:
    """Fill a job's cache, grow its adapted head, and fork it if the stage trains a fork."""
    forked = name == "own copies"
    plan = make_plan(
        make_job("ner", protection=Exact() if forked else Statistical(), freeze="auto" if forked else "head")
    )
    stage = planner_of(plan).stage(BLOCKS[name], number=1, forked=forked)
    stage_factory = make_stage_factory(plan, StopSignal())
    grow_adapted_head(plan, stage_factory.features)
    if forked:
        plan.model.fork("ner", stage.blocks)
    plan.model.eval()
    return plan, stage, stage_factory


def see(stage_factory: StageFactory, inputs: StageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the adapted head's features of the dev texts, from the source and from the frozen blocks."""
    encodings = stage_factory.dev_evaluator.scorers[0].encodings
    assert encodings
    assert inputs.untrained is not None
    with torch.no_grad():
        return inputs.source(encodings).tokens, inputs.untrained(encodings).tokens


@pytest.mark.parametrize("name", BLOCKS)
def test_initial_features_run_no_block(make_job: MakeJob, name: str) -> None:
    """Before any block has changed, a stage uses the base's features and runs no block."""
    plan, stage, stage_factory = prepare(make_job, name)
    inputs = stage_factory.inputs(stage)
    expected, actual = see(stage_factory, inputs)
    assert torch.allclose(actual, expected, atol=1e-5)

    ran = []
    for block in (*plan.model.blocks(), *(plan.model.branch or ())):
        block.register_forward_hook(lambda *_: ran.append(1))
    stage_factory.dev_evaluator.measure(plan.model, inputs.untrained)
    assert not ran


@pytest.mark.parametrize("name", ["all blocks", "own copies"])
def test_features_of_changed_blocks_are_recomputed(make_job: MakeJob, name: str) -> None:
    """A stage after one that trained blocks is scored on the features of the changed blocks."""
    plan, stage, stage_factory = prepare(make_job, name)
    base = stage_factory.inputs(stage).untrained
    with torch.no_grad():
        for block in plan.model.branch or plan.model.blocks():
            for parameter in block.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected, actual = see(stage_factory, stage_factory.inputs(stage))
    assert torch.equal(actual, expected)
    assert base is not None
    assert not torch.allclose(actual, base(stage_factory.dev_evaluator.scorers[0].encodings).tokens, atol=1e-2)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("after", ["base", "top block"])
def test_training_features_have_step_precision_and_dev_features_fp32(
    make_job: MakeJob, after: str, mixed: bool
) -> None:
    """Cached features of training texts have the precision of training steps, those of dev texts are fp32."""
    settings = Hyperparameters(mixed_precision=mixed, unfrozen_blocks=1)
    plan = make_plan(make_job("ner", hyperparameters=settings, freeze="head"))
    stage_factory = make_stage_factory(plan, StopSignal())
    grow_adapted_head(plan, stage_factory.features)
    kept, exact = stage_factory.features.base, live(plan.model, plan.encoder.settings.pad_id)
    if after != "base":
        _, top_block, once_more, _ = plan.stages
        assert top_block.name == after
        kept = stage_factory.features.source(once_more)
    taught, judged = [target.encoding for target in plan.new], stage_factory.dev_evaluator.scorers[0].encodings

    with torch.no_grad():
        actual, expected = ([source(values).tokens for values in (taught, judged)] for source in (kept, exact))

    assert torch.allclose(actual[1], expected[1], atol=1e-5)
    assert torch.allclose(actual[0], expected[0], atol=0.1)
    assert torch.allclose(actual[0], expected[0], atol=1e-5) is not mixed


@pytest.mark.parametrize("mixed", [True, False])
def test_a_probe_learns_the_same_over_kept_features_and_without_them(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    """If features do not fit in memory, the probe's steps and its teacher get the same features."""
    losses, answers = [], []
    for fits in (True, False):
        plan = make_plan(make_job("ner", hyperparameters=Hyperparameters(mixed_precision=mixed), freeze="head"))
        monkeypatch.setattr("twofold_trainer.modeling.features.CACHE_BYTES", plan.feature_bytes if fits else 0)
        stage_factory = make_stage_factory(plan, StopSignal())
        assert stage_factory.features.is_caching == fits
        grow_adapted_head(plan, stage_factory.features)
        stage = plan.stages[0]
        inputs = stage_factory.inputs(stage)
        assert inputs.objective.distillation is not None
        answers.append(inputs.objective.distillation.teacher.answer([target.encoding for target in plan.new]).ner)
        stage_trainer = make_stage_trainer(plan.model, stage, inputs)
        losses.append([stage_trainer.step(step) for step in inputs.pool.epoch(16, random.Random(0))])

    assert len(losses[0]) > 2
    assert torch.allclose(answers[0], answers[1], atol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

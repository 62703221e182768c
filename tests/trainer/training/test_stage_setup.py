"""What is kept for the stages of a job: in which precision, and how long what the base saw is true."""

from __future__ import annotations

import random

import pytest
import torch
from trainer.conftest import MakeJob
from twofold_checkpoint.protocol.job import Exact, Hyperparameters, Statistical
from twofold_trainer.modeling.features import live
from twofold_trainer.planning.plan import Plan, make_plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.optimization import make_stage_trainer
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.stage_setup import StageFactory
from twofold_trainer.training.train import grow

pytestmark = pytest.mark.slow

STAGES = {
    "heads": Stage(("ner",), 0, 2),
    "top block": Stage(("ner",), 1, 2),
    "all blocks": Stage(("ner",), 2, 2),
    "own copies": Stage(("ner",), 2, 2, forked=True),
}


def prepare(make_job: MakeJob, stage: Stage) -> tuple[Plan, StageFactory]:
    """Fill a job's cache, grow its head, and give it blocks of its own if the stage trains such."""
    protection = Exact() if stage.forked else Statistical()
    plan = make_plan(make_job("ner", protection=protection, freeze="auto" if stage.forked else "head"))
    stage_factory = StageFactory(plan, StopSignal())
    stage_factory.precompute()
    grow(plan, stage_factory)
    if stage.forked:
        plan.model.fork("ner", stage.blocks)
    plan.model.eval()
    return plan, stage_factory


def see(stage_factory: StageFactory, inputs: StageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the adapted head reads of the dev texts, over the source and over what is untrained."""
    encodings = stage_factory.dev_evaluator.scorers[0].encodings
    assert encodings
    assert inputs.untrained is not None
    with torch.no_grad():
        return inputs.source(encodings).tokens, inputs.untrained(encodings).tokens


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_begins_with_needs_no_block(make_job: MakeJob, name: str) -> None:
    """Before anything moved, what the base saw is what the stage's source gives, and no block runs for it."""
    plan, stage_factory = prepare(make_job, STAGES[name])
    inputs = stage_factory.stage_inputs(STAGES[name])
    expected, found = see(stage_factory, inputs)
    assert torch.allclose(found, expected, atol=1e-5)

    ran = []
    for block in (*plan.model.blocks(), *(plan.model.branch or ())):
        block.register_forward_hook(lambda *_: ran.append(1))
    stage_factory.dev_evaluator.measure(plan.model, inputs.untrained)
    assert not ran


@pytest.mark.parametrize("name", ["all blocks", "own copies"])
def test_once_blocks_may_have_moved_they_are_asked(make_job: MakeJob, name: str) -> None:
    """A stage that comes after one that trained blocks is measured over what those see now."""
    stage = STAGES[name]
    plan, stage_factory = prepare(make_job, stage)
    base = stage_factory.stage_inputs(stage).untrained
    with torch.no_grad():
        for block in plan.model.branch or plan.model.blocks():
            for parameter in block.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected, found = see(stage_factory, stage_factory.stage_inputs(stage))
    assert torch.equal(found, expected)
    assert base is not None
    assert not torch.allclose(found, base(stage_factory.dev_evaluator.scorers[0].encodings).tokens, atol=1e-2)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("after", ["base", "top block"])
def test_what_teaches_is_computed_as_steps_compute_it_and_what_judges_in_fp32(
    make_job: MakeJob, after: str, mixed: bool
) -> None:
    """Kept features of training texts come in the precision of training steps, those of dev texts never in bf16."""
    plan = make_plan(make_job("ner", hyperparameters=Hyperparameters(mixed_precision=mixed), freeze="head"))
    stage_factory = StageFactory(plan, StopSignal())
    stage_factory.precompute()
    grow(plan, stage_factory)
    kept, exact = stage_factory.base_features, live(plan.model, plan.encoder.settings.pad_id)
    if after != "base":
        once_more, _ = plan.refit_stages(STAGES[after])
        kept = stage_factory.source(once_more)
    taught, judged = [target.encoding for target in plan.new], stage_factory.dev_evaluator.scorers[0].encodings

    with torch.no_grad():
        found, expected = ([source(some).tokens for some in (taught, judged)] for source in (kept, exact))

    assert torch.allclose(found[1], expected[1], atol=1e-5)
    assert torch.allclose(found[0], expected[0], atol=0.1)
    assert torch.allclose(found[0], expected[0], atol=1e-5) is not mixed


@pytest.mark.parametrize("mixed", [True, False])
def test_a_probe_learns_the_same_over_kept_features_and_without_them(make_job: MakeJob, mixed: bool) -> None:
    """Where features do not fit into memory, the probe's steps and its teacher see what they would have seen."""
    losses, answers = [], []
    for fits in (True, False):
        plan = make_plan(make_job("ner", hyperparameters=Hyperparameters(mixed_precision=mixed), freeze="head"))
        stage_factory = StageFactory(plan, StopSignal())
        stage_factory.caches_features = fits
        stage_factory.precompute()
        grow(plan, stage_factory)
        stage = STAGES["heads"]
        inputs = stage_factory.stage_inputs(stage)
        assert inputs.objective.distillation is not None
        answers.append(inputs.objective.distillation.teacher.answer([target.encoding for target in plan.new]).ner)
        stage_trainer = make_stage_trainer(plan.model, stage, plan.recipe, inputs)
        losses.append([stage_trainer.step(step) for step in inputs.pool.epoch(16, random.Random(0))])

    assert len(losses[0]) > 2
    assert torch.allclose(answers[0], answers[1], atol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

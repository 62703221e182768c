"""The logit offset of new rows: the best value on dev, and none if none helps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from trainer.conftest import MakeJob
from twofold_checkpoint.protocol.job import Hyperparameters
from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.planning.plan import Plan, make_plan
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.logit_offset import calibrate_new_label_bias
from twofold_trainer.training.stage_factory import StageFactory, make_stage_factory
from twofold_trainer.training.train import train


@dataclass
class Probed:
    """A job whose adapted head is trained over a frozen backbone."""

    plan: Plan
    stage_factory: StageFactory

    @property
    def source(self) -> FeatureSource:
        """The features, which do not change."""
        return self.stage_factory.features.base

    def dev(self) -> float:
        """The dev score."""
        return self.stage_factory.dev_evaluator.measure(self.plan.model, self.source).value


@pytest.fixture(params=["classifier", "ner"])
def probed(request: pytest.FixtureRequest, make_job: MakeJob) -> Probed:
    """A head with two new labels or one new type, after the probe."""
    rates = Hyperparameters(epochs=20, head_learning_rate=3e-2)
    plan = make_plan(make_job(request.param, freeze="backbone", hyperparameters=rates))
    stage_factory = make_stage_factory(plan, StopSignal())
    for _ in train(plan, StopSignal(), lambda: pytest.fail("nobody judges a probe")):
        pass
    return Probed(plan, stage_factory)


@pytest.mark.parametrize("wrong", [-4.0, 4.0])
def test_a_wrong_lead_is_made_good(probed: Probed, wrong: float) -> None:
    """If old rows dominate new ones or the other way round, the offset corrects it and the dev score rises; nothing else changes."""
    head = probed.plan.model.head(probed.plan.request.head)
    old = len(
        probed.plan.base.manifest.labels.labels
        if probed.plan.request.head == "classifier"
        else probed.plan.base.manifest.labels.tags
    )
    with torch.no_grad():
        head.bias[old:] += wrong
    before, weight, bias = probed.dev(), head.weight.clone(), head.bias.clone()

    lead = calibrate_new_label_bias(probed.plan.model, probed.stage_factory.dev_evaluator, probed.source, old)

    assert lead * wrong < 0
    assert probed.dev() > before
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias[:old], bias[:old])
    assert torch.allclose(head.bias[old:], bias[old:] + lead)


def test_no_lead_without_a_gain(probed: Probed) -> None:
    """After the best offset is applied, no other one improves the score, and no bit changes."""
    model, head = probed.plan.model, probed.plan.model.head(probed.plan.request.head)
    old = head.out_features - (2 if probed.plan.request.head == "classifier" else 2 * len(probed.plan.added))
    for _ in range(3):
        calibrate_new_label_bias(model, probed.stage_factory.dev_evaluator, probed.source, old)
    bias = head.bias.clone()

    assert calibrate_new_label_bias(model, probed.stage_factory.dev_evaluator, probed.source, old) == 0.0
    assert torch.equal(head.bias, bias)


def test_few_examples_give_no_lead_that_chance_could(probed: Probed, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the examples are too few to tell, the offset stays zero."""
    model, head = probed.plan.model, probed.plan.model.head(probed.plan.request.head)
    old = head.out_features - (2 if probed.plan.request.head == "classifier" else 2 * len(probed.plan.added))
    with torch.no_grad():
        head.bias[old:] -= 4.0
    bias = head.bias.clone()

    monkeypatch.setattr("twofold_trainer.training.logit_offset.OFFSET_FLIP_RATE", 1e6)
    assert calibrate_new_label_bias(model, probed.stage_factory.dev_evaluator, probed.source, old) == 0.0
    assert torch.equal(head.bias, bias)

    monkeypatch.setattr("twofold_trainer.training.logit_offset.OFFSET_FLIP_RATE", 0.0)
    assert calibrate_new_label_bias(model, probed.stage_factory.dev_evaluator, probed.source, old) > 0.0

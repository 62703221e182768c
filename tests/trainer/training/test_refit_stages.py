"""The refit stages: the head alone, then the upper half of the blocks; and full rehearsal if old labels drop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer.conftest import MakeJob, planner_of
from twofold_checkpoint.protocol.events import Event, NoteAdded, PlanMade, StepCompleted
from twofold_checkpoint.protocol.job import Exact, Hyperparameters, Statistical
from twofold_trainer.evaluation.gate import GateResult
from twofold_trainer.modeling.features import compute_features
from twofold_trainer.modeling.freezing import is_untouched
from twofold_trainer.planning.plan import Plan, make_plan
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.optimization import make_stage_trainer
from twofold_trainer.training.stage_factory import StageFactory, make_stage_factory
from twofold_trainer.training.stages import StagesResult
from twofold_trainer.training.train import grow_adapted_head, train

pytestmark = pytest.mark.slow

QUICK = Hyperparameters(epochs=2, backbone_learning_rate=1e-3, head_learning_rate=1e-2)
PASSES = GateResult("pass", "nobody asked")


def prepare(plan: Plan) -> StageFactory:
    """Fill a job's cache, and grow its adapted head."""
    stage_factory = make_stage_factory(plan, StopSignal())
    grow_adapted_head(plan, stage_factory.features)
    return stage_factory


def with_fork(plan: Plan, blocks: int) -> Plan:
    """Return a plan with a fork of *blocks* blocks."""
    planner = planner_of(plan)
    forked = planner.stage(blocks, number=3, forked=True)
    return replace(plan, stages=(plan.stages[0], forked, *planner.refit_stages(forked, [forked])))


def train_all(plan: Plan) -> tuple[StagesResult, list[Event]]:
    """Train a plan to its end; return the result and the events."""
    running, heard = train(plan, StopSignal(), lambda: PASSES), []
    try:
        while True:
            heard.append(next(running))
    except StopIteration as done:
        return done.value, heard


def notes(events: Iterable[Event]) -> list[str]:
    """Return the messages of the notes."""
    return [event.message for event in events if isinstance(event, NoteAdded)]


@pytest.fixture
def exact(make_job: MakeJob) -> Plan:
    """A plan that forks."""
    return make_plan(make_job("ner", protection=Exact(), hyperparameters=QUICK))


@pytest.mark.parametrize(("refit", "room"), [("head", 1), ("top block", 1), ("top block", 0)])
@pytest.mark.parametrize("forked", [2, 1])
def test_refits_use_features_of_the_trained_blocks(
    exact: Plan, monkeypatch: pytest.MonkeyPatch, forked: int, refit: str, room: int
) -> None:
    """The cached features are those of the blocks at the start of the stage, for new, rehearsed and dev texts, whether they fit in memory or not."""
    monkeypatch.setattr("twofold_trainer.modeling.features.CACHE_BYTES", exact.feature_bytes * room)
    exact = with_fork(exact, forked)
    stage_factory = prepare(exact)
    exact.model.fork("ner", forked)
    (stage,) = (stage for stage in exact.stages if stage.name == f"refit of the {refit}")
    pool, judges = stage.pool, stage_factory.dev_evaluator.scorers
    encodings = [target.encoding for target in (*pool.new, *pool.rehearsed)]
    encodings += [encoding for judge in judges for encoding in judge.encodings]
    untrained = [stage_factory.features.base([encoding]).tokens.detach() for encoding in encodings]
    for parameter in exact.model.branch.parameters():
        parameter.data.add_(0.05)
    inputs = stage_factory.inputs(stage)
    for encoding, before in zip(encodings, untrained, strict=True):
        seen = inputs.source([encoding]).tokens
        with torch.no_grad():
            now = compute_features(exact.model, [encoding], exact.encoder.settings.pad_id, heads=("ner",)).tokens
        assert torch.allclose(seen, now, atol=1e-4)
        assert not torch.allclose(seen, before, atol=1e-2)


def test_the_head_moves_alone_at_its_own_rate(exact: Plan) -> None:
    """Only the adapted head's two tensors change, at the recipe's rate, without a guard."""
    stage_factory = prepare(exact)
    _, forked, head, _ = exact.stages
    exact.model.fork("ner", forked.blocks)
    inputs = stage_factory.inputs(head)
    stage_trainer = make_stage_trainer(exact.model, head, inputs)

    assert set(stage_trainer.names) == {"ner.weight", "ner.bias"}
    assert {group["initial_lr"] for group in stage_trainer.optimizer.param_groups} == {exact.recipe.refit_learning_rate}
    assert inputs.guard is None
    assert inputs.objective.rehearsed_weight == exact.recipe.rehearsed_weight < 1
    assert head.patience == head.epochs == exact.recipe.refit_epochs


def test_then_the_upper_half_moves_with_it_and_remembered_texts_weigh_as_much_as_new_ones(exact: Plan) -> None:
    """The fork's upper half and its head change, at a fork's rates; nothing below them changes, nor the other head."""
    exact = with_fork(exact, 2)
    stage_factory = prepare(exact)
    exact.model.fork("ner", 2)
    stage_factory.baseline_dev_score = (
        2.0  # The old labels have fallen: that is what the stage is for, and no reason to say so.
    )
    *_, upper = exact.stages
    inputs = stage_factory.inputs(upper)
    stage_trainer = make_stage_trainer(exact.model, upper, inputs)

    own = {f"branch.1.{name}" for name, _ in exact.model.branch[1].named_parameters()}
    assert set(stage_trainer.names) == {"ner.weight", "ner.bias"} | own
    assert is_untouched(exact.model, "ner", stage_trainer.names)
    rates = {exact.recipe.fork_learning_rate, exact.recipe.head_learning_rate}
    assert {group["initial_lr"] for group in stage_trainer.optimizer.param_groups} == rates
    assert (inputs.guard, inputs.note, inputs.objective.rehearsed_weight) == (None, None, 1.0)
    assert upper.patience == upper.epochs == exact.recipe.balance_epochs


def test_the_upper_half_of_shared_blocks_moves_under_guard(make_job: MakeJob) -> None:
    """Both heads read the output of the upper half, both are rehearsed, and the guard checks the protected one with cached features."""
    settings = Hyperparameters(epochs=2, mixed_precision=False)
    plan = make_plan(make_job("ner", protection=Statistical(margin=60), hyperparameters=settings))
    stage_factory = prepare(plan)
    *_, upper = plan.stages
    for parameter in plan.model.blocks()[0].parameters():
        parameter.data.add_(0.05)
    inputs = stage_factory.inputs(upper)
    guard = stage_factory.guard

    assert guard is not None
    assert inputs.guard is guard
    assert {target.example for target in inputs.pool.rehearsed} == {target.example for target in plan.rehearsed}
    with torch.no_grad():
        for encoding in (*guard.scorer.encodings, *(target.encoding for target in inputs.pool.rehearsed)):
            seen, now = (
                inputs.source([encoding]),
                compute_features(plan.model, [encoding], plan.encoder.settings.pad_id),
            )
            assert torch.allclose(seen.tokens, now.tokens, atol=1e-4)
            assert torch.allclose(seen.pooled, now.pooled, atol=1e-4)
    names = make_stage_trainer(plan.model, upper, inputs).names
    assert {name.split(".")[0] for name in names} == {"backbone", "ner"}


@pytest.mark.parametrize("blocks", [1, 2, 5, 6])
def test_the_upper_half_is_the_larger_one(exact: Plan, blocks: int) -> None:
    """Of an odd number of blocks, the middle one belongs to the upper half."""
    *_, upper = with_fork(exact, blocks).stages
    assert (upper.blocks, upper.forked) == ({1: 1, 2: 1, 5: 3, 6: 3}[blocks], True)


@pytest.mark.parametrize(
    ("epochs", "whole", "upper"), [(1, 1, 1), (2, 1, 2), (3, 2, 3), (5, 2, 3), (8, 4, 3), (None, 4, 3)]
)
def test_a_fork_is_trained_as_a_whole_for_two_fifths_of_the_epochs(
    make_job: MakeJob, epochs: int | None, whole: int, upper: int
) -> None:
    """All blocks of a fork train for two fifths of the epochs, rounded up; its upper half for three more, or for fewer on request."""
    plan = make_plan(make_job("ner", protection=Exact(), hyperparameters=Hyperparameters(epochs=epochs)))
    _, forked, *_, last = plan.stages
    assert (forked.epochs, last.epochs) == (whole, upper)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 1.0),
        ({"hyperparameters": Hyperparameters(rehearsal_ratio=0.25)}, 0.25),
        ({"hyperparameters": Hyperparameters(rehearsal_ratio=0.0)}, 0.0),
        ({"freeze": "staged"}, None),
    ],
    ids=["by default", "asked for less", "asked for none", "staged"],
)
def test_they_rehearse_all_that_is_remembered(make_job: MakeJob, settings: dict[str, Any], share: float | None) -> None:
    """A refit rehearses all remembered texts of the head, or the requested ratio; without any, only a fork refits its upper half."""
    plan = make_plan(make_job("ner", **settings))
    planner = planner_of(plan)
    forked, shared = planner.forked(), planner.shared()
    actual = planner.refit_stages(forked, [shared, forked])
    teaching = [target for target in plan.rehearsed if target.has_labels_for("ner")]

    assert planner.refit_stages(plan.stages[0], plan.all_stages) == ()  # A probe moves no block.
    if share is None:
        assert actual == ()
    else:
        expected = len(teaching) if share == 1.0 else min(len(teaching), round(share * len(plan.new)))
        assert [stage.blocks for stage in actual] == ([0, 2] if share else [2])
        assert [stage.blocks for stage in planner.refit_stages(shared, [shared, forked])] == ([0, 2] if share else [])
        for stage in actual:
            assert list(stage.pool.rehearsed) == teaching
            assert stage.pool.rehearsed_per_epoch == expected


def test_the_head_refit_needs_cached_features(exact: Plan, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """If features do not fit in memory, the refit of the head is skipped, and the plan does not announce it; the upper half still trains."""
    job = make_job("ner", protection=Exact(), hyperparameters=QUICK)
    monkeypatch.setattr("twofold_trainer.modeling.features.CACHE_BYTES", exact.feature_bytes - 1)
    exact = make_plan(job)
    monkeypatch.setattr(
        "twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: 1.0
    )  # Every stage is kept.
    stages_result, _ = train_all(exact)

    assert [trained.stage.name for trained in stages_result.completed_stages] == [
        "heads",
        exact.stages[1].name,
        "refit of the top 2 blocks",
    ]
    assert "refit of the head" not in exact.summary()
    monkeypatch.setattr("twofold_trainer.modeling.features.CACHE_BYTES", exact.feature_bytes)
    assert "refit of the head" in make_plan(job).summary()


def test_the_plan_names_refit_stages(exact: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan names the refit stages, their steps are counted, and they are the last completed stages."""
    monkeypatch.setattr("twofold_trainer.training.progress.REPORT_SECONDS", 0.0)
    monkeypatch.setattr(
        "twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: 1.0
    )  # Every stage is kept.
    (planned,) = (event for event in exact.events() if isinstance(event, PlanMade))
    stages_result, heard = train_all(exact)
    stages = list(dict.fromkeys(event.stage for event in heard if isinstance(event, StepCompleted)))
    last = [event for event in heard if isinstance(event, StepCompleted)][-1]

    assert stages == ["heads", exact.stages[1].name, "refit of the head", "refit of the top 2 blocks"]
    assert stages == [trained.stage.name for trained in stages_result.completed_stages]
    assert "refit of the head, refit of the top 2 blocks." in planned.plan
    assert f"up to {len(exact.stages[-1].pool.rehearsed)} rehearsed examples per epoch" in planned.plan
    assert last.step == last.total_steps


def test_an_unhelpful_refit_is_undone(exact: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a refit does not help, head and blocks keep the state of the stage before, and notes say so."""
    # The probe and the fork are kept whatever dev says, what follows them never.
    chances = iter([1.0, 1.0, -2.0, -2.0])
    monkeypatch.setattr("twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: next(chances))
    monkeypatch.setattr("twofold_trainer.training.train.calibrate_new_label_bias", lambda *_, **__: 0.0)
    running, message, left = train(exact, StopSignal(), lambda: PASSES), list[str](), dict[str, Tensor]()
    try:
        while True:
            event = next(running)
            message += notes([event])
            if message and message[-1].startswith(f'Stage "{exact.stages[1].name}" was kept') and not left:
                left = {name: tensor.clone() for name, tensor in exact.model.state_dict().items()}
    except StopIteration as done:
        stages_result = done.value

    assert [trained.stage.name for trained in stages_result.completed_stages] == ["heads", exact.stages[1].name]
    for name in ("head", "top 2 blocks"):
        assert any(note.startswith(f'Stage "refit of the {name}" did not improve the dev score') for note in message)
    assert left
    assert all(torch.equal(tensor, left[name]) for name, tensor in exact.model.state_dict().items())


@pytest.mark.parametrize(("lost", "firmly"), [(0.014, False), (0.016, True)])
def test_old_labels_that_fall_are_held_firmly(exact: Plan, lost: float, *, firmly: bool) -> None:
    """If the probe costs old labels more than OLD_LABEL_DROP, a fork rehearses one to one at full weight, and a note says so."""
    halves = replace(exact.recipe, rehearsal_ratio=1.0, fork_rehearsal_ratio=0.5, rehearsed_weight=0.5)
    exact = with_fork(replace(exact, recipe=halves), 3)
    forked = exact.stages[1]
    stage_factory = prepare(exact)
    now = stage_factory.dev_evaluator.scorers[1].score(exact.model, exact.labels, stage_factory.features.source(forked))
    assert now is not None
    stage_factory.baseline_dev_score = now.value + lost
    exact.model.fork("ner", forked.blocks)
    inputs = stage_factory.inputs(forked)

    assert (inputs.pool.ratio, inputs.objective.rehearsed_weight) == ((1.0, 1.0) if firmly else (0.5, 0.5))
    assert (inputs.note is not None) == firmly
    if firmly:
        assert "fell by 1.6 points" in inputs.note


def test_nothing_is_held_firmly_that_nothing_measures(exact: Plan) -> None:
    """If no example scores the old labels, rehearsal is unchanged; a probe never rehearses in full."""
    stage_factory = prepare(exact)
    probe, forked, *_ = exact.stages
    floor = stage_factory.baseline_dev_score
    stage_factory.baseline_dev_score = 2.0
    assert stage_factory.inputs(probe).note is None
    stage_factory.baseline_dev_score = None
    exact.model.fork("ner", forked.blocks)
    assert floor is not None
    assert stage_factory.inputs(forked).note is None
    assert stage_factory.inputs(forked).pool.ratio == exact.recipe.fork_rehearsal_ratio

"""The head once more, after its blocks; and old labels that are held firmly where a probe shows that they fall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer.conftest import MakeJob
from twofold_checkpoint.events import Event, Noted, Planned, Stepped
from twofold_checkpoint.job import Exact, Hyperparameters
from twofold_trainer.climb import Climbed
from twofold_trainer.course import Course
from twofold_trainer.features import compute_features
from twofold_trainer.gate import Verdict
from twofold_trainer.learner import make_learner
from twofold_trainer.plan import Plan, make_plan
from twofold_trainer.stage import Stage
from twofold_trainer.stop import Stop
from twofold_trainer.training import grow, train

QUICK = Hyperparameters(epochs=2, backbone_learning_rate=1e-3, head_learning_rate=1e-2)
PASSES = Verdict("pass", "nobody asked")


def prepare(plan: Plan) -> Course:
    """Fill a job's cache and grow its head."""
    course = Course(plan, Stop())
    course.fill()
    grow(plan, course)
    return course


def train_all(plan: Plan) -> tuple[Climbed, list[Event]]:
    """Train a plan to its end; returns what came of it, and what was heard."""
    running, heard = train(plan, Stop(), lambda: PASSES), []
    try:
        while True:
            heard.append(next(running))
    except StopIteration as done:
        return done.value, heard


def notes(events: Iterable[Event]) -> list[str]:
    """Return what was noted."""
    return [event.message for event in events if isinstance(event, Noted)]


@pytest.fixture
def exact(make_job: MakeJob) -> Plan:
    """A plan that forks."""
    return make_plan(make_job("ner", protection=Exact(), hyperparameters=QUICK))


def test_it_sees_what_the_trained_blocks_see(exact: Plan) -> None:
    """Its features are those of the blocks as they are when it begins, of the new texts, of what is remembered and of the judges."""
    course = prepare(exact)
    exact.model.fork("ner", 2)
    stage = replace(exact.forked, blocks=2)
    (refit,) = exact.refit(stage)
    for parameter in exact.model.branch.parameters():
        parameter.data.add_(0.05)
    lesson = course.lesson(refit)
    wanted = [*lesson.pool.new, *lesson.pool.rehearsed]
    encodings = [target.encoding for target in wanted] + [
        one for judge in course.yardstick.judges for one in judge.encodings
    ]
    for one in encodings:
        seen = lesson.source([one]).tokens
        with torch.no_grad():
            now = compute_features(exact.model, [one], exact.encoder.settings.pad_id, heads=("ner",)).tokens
        assert torch.allclose(seen, now, atol=1e-4)
        assert not torch.allclose(seen, course.base_features([one]).tokens, atol=1e-2)


def test_it_moves_the_head_alone_at_its_own_rate(exact: Plan) -> None:
    """Only the adapted head's two tensors move, at the rate of the recipe, and no guard is needed for that."""
    course = prepare(exact)
    (refit,) = exact.refit(exact.forked)
    lesson = course.lesson(refit)
    learner = make_learner(exact.model, refit, exact.recipe, lesson)

    assert set(learner.names) == {"ner.weight", "ner.bias"}
    assert {group["initial_lr"] for group in learner.optimizer.param_groups} == {exact.recipe.refit_learning_rate}
    assert lesson.guard is None
    assert refit.patience(exact.recipe) == refit.epochs(exact.recipe) == exact.recipe.refit_epochs


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 1.0),
        ({"hyperparameters": Hyperparameters(rehearsal_ratio=0.25)}, 0.25),
        ({"hyperparameters": Hyperparameters(rehearsal_ratio=0.0)}, None),
        ({"freeze": "staged"}, None),
    ],
    ids=["by default", "asked for less", "asked for none", "staged"],
)
def test_it_rehearses_all_that_is_remembered(make_job: MakeJob, settings: dict[str, Any], share: float | None) -> None:
    """All that teaches the head, or as much as a caller asks for; where that is nothing, and in STAGED, there is no such stage."""
    plan = make_plan(make_job("ner", **settings))
    found = plan.refit(plan.forked)
    teaching = [target for target in plan.rehearsed if target.teaches("ner")]

    assert plan.refit(plan.stages[0]) == ()  # A probe moves no block.
    if share is None:
        assert found == ()
    else:
        (refit,) = found
        assert list(plan.pool(refit).rehearsed) == teaching
        expected = len(teaching) if share == 1.0 else min(len(teaching), round(share * len(plan.new)))
        assert plan.pool(refit).drawn == expected


def test_there_is_none_where_features_are_not_kept(exact: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run every text again in each of its epochs; the plan does not promise it, and the job trains without it."""
    monkeypatch.setattr("twofold_trainer.recipe.CACHE_BYTES", exact.feature_bytes - 1)
    monkeypatch.setattr("twofold_trainer.loop.Yardstick.chance", lambda *_: 1.0)  # Every stage is kept.
    climbed, _ = train_all(exact)

    assert [trained.stage.name for trained in climbed.kept] == ["heads", exact.forked.name]
    assert "the head once more" not in exact.sentence()
    monkeypatch.setattr("twofold_trainer.recipe.CACHE_BYTES", exact.feature_bytes)
    assert "the head once more" in exact.sentence()


def test_a_job_tells_of_it(exact: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan names it, its steps are counted, and it comes last of the stages that are kept."""
    monkeypatch.setattr("twofold_trainer.pace.REPORT_SECONDS", 0.0)
    monkeypatch.setattr("twofold_trainer.loop.Yardstick.chance", lambda *_: 1.0)  # Every stage is kept.
    (planned,) = (event for event in exact.events() if isinstance(event, Planned))
    climbed, heard = train_all(exact)
    stages = list(dict.fromkeys(event.stage for event in heard if isinstance(event, Stepped)))
    last = [event for event in heard if isinstance(event, Stepped)][-1]

    assert stages == ["heads", exact.forked.name, "the head once more"]
    assert stages == [trained.stage.name for trained in climbed.kept]
    assert "then the head once more;" in planned.plan
    assert f"up to {len(exact.recalled)} rehearsed ones an epoch" in planned.plan
    assert last.step == last.total_steps


def test_one_that_does_not_help_is_undone(exact: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is then as its blocks' stage left it, what was learnt before stays, and a note says so."""
    chances = iter([1.0, 1.0, -2.0])  # The probe and the fork are kept whatever dev says, what follows them never.
    monkeypatch.setattr("twofold_trainer.loop.Yardstick.chance", lambda *_: next(chances))
    monkeypatch.setattr("twofold_trainer.training.balance", lambda *_, **__: 0.0)
    running, told, left = train(exact, Stop(), lambda: PASSES), list[str](), dict[str, Tensor]()
    try:
        while True:
            event = next(running)
            told += notes([event])
            if told and told[-1].startswith(f"Stage {exact.forked.name} was kept") and not left:
                left = {name: tensor.clone() for name, tensor in exact.model.state_dict().items()}
    except StopIteration as done:
        climbed = done.value

    assert [trained.stage.name for trained in climbed.kept] == ["heads", exact.forked.name]
    assert any(note.startswith("Stage the head once more did not help") for note in told)
    assert left
    assert all(torch.equal(tensor, left[name]) for name, tensor in exact.model.state_dict().items())


@pytest.mark.parametrize(("lost", "firmly"), [(0.014, False), (0.016, True)])
def test_old_labels_that_fall_are_held_firmly(exact: Plan, lost: float, *, firmly: bool) -> None:
    """Where the probe has cost more than FALLEN of the old labels, a fork rehearses one to one at full weight, and a note says so."""
    halves = replace(exact.recipe, rehearsal_ratio=1.0, fork_rehearsal_ratio=0.5, rehearsed_weight=0.5)
    exact = replace(exact, recipe=halves)
    course = prepare(exact)
    now = course.yardstick.judges[1].score(exact.model, exact.labels, course.source(exact.forked))
    assert now is not None
    course.floor = now.value + lost
    exact.model.fork("ner", exact.forked.blocks)
    lesson = course.lesson(exact.forked)

    assert (lesson.pool.ratio, lesson.objective.rehearsed_weight) == ((1.0, 1.0) if firmly else (0.5, 0.5))
    assert (lesson.note is not None) == firmly
    if firmly:
        assert "lost 1.6 points on dev" in lesson.note


def test_nothing_is_held_firmly_that_nothing_measures(exact: Plan) -> None:
    """Where no example tells how the old labels do, they are rehearsed as ever; and a probe is never firm."""
    course = prepare(exact)
    probe, floor = Stage(("ner",), 0, exact.forked.of), course.floor
    course.floor = 2.0
    assert course.lesson(probe).note is None
    course.floor = None
    exact.model.fork("ner", exact.forked.blocks)
    assert floor is not None
    assert course.lesson(exact.forked).note is None
    assert course.lesson(exact.forked).pool.ratio == exact.recipe.fork_rehearsal_ratio

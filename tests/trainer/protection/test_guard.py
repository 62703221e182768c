"""The guard's decisions, and the training objective."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny_models
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName
from twofold_trainer.datasets.targets import make_targets
from twofold_trainer.modeling.features import compute_features, live
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.protection.guard import allowance, decide, is_check_due
from twofold_trainer.protection.teacher import Teacher
from twofold_trainer.training.losses import distillation, label_nll, partial_label_nll, repaired_nll
from twofold_trainer.training.objective import Distillation, Objective

LABELS = LabelSet(labels=tuple(sorted(tiny_models.TEMPLATES)), entity_types=("artist", "city", "date"))


@pytest.mark.parametrize(
    ("drop", "breaches", "action"),
    [
        (-0.02, 0, "none"),
        (0.01, 0, "none"),
        (0.03, 0, "none"),
        (0.031, 0, "restore"),
        (0.031, 1, "leave"),
        (0.03, 1, "none"),
    ],
)
def test_the_guard_restores_once_and_then_ends_the_stage(drop: float, breaches: int, action: str) -> None:
    """A drop of more than three allowances restores the best state, and a second one ends the stage."""
    assert decide(drop, 0.01, breaches) == action


def test_the_guard_looks_often_at_first() -> None:
    """The guard checks every 25 steps during the first 200, then four times per epoch, but at most every 25 steps."""
    early = [step for step in range(1, 201) if is_check_due(step, 1000)]
    late = [step for step in range(201, 2001) if is_check_due(step, 1000)]

    assert early == list(range(25, 201, 25))
    assert late == [250, 500, 750, 1000, 1250, 1500, 1750, 2000]
    assert not [step for step in range(201, 400) if is_check_due(step, 8) and step % 25]


@pytest.mark.parametrize(
    ("margin", "examples", "allowed"), [(1.0, 10_000, 0.005), (4.0, 2000, 0.02), (1.0, 100, 0.01), (0.0, 400, 0.005)]
)
def test_chance_is_allowed_for(margin: float, examples: int, allowed: float) -> None:
    """The allowance is half the margin, or one standard error if few examples cannot show less."""
    assert allowance(margin, examples) == pytest.approx(allowed)


class World:
    """A tiny model with its teacher and a batch of new and rehearsed texts."""

    def __init__(self, directory: Path) -> None:
        backbone = tiny_models.make_backbone("bert", directory)
        encoder = Encoder(backbone.tokenizer, backbone.settings)
        torch.manual_seed(0)
        self.model = TwofoldModel(backbone.module, LABELS, "mean").eval()
        self.teacher = Teacher(self.model, live(self.model, 0))
        grown = LABELS.append(entity_types=("people",))
        new = make_targets(tiny_models.restaurant(6), encoder, grown, heads=("ner",))
        self.batch = [*new, *make_targets(tiny_models.examples(4), encoder, grown, rehearsed=True)]
        self.model.ner = torch.nn.Linear(self.model.ner.in_features, len(grown.tags))
        with torch.no_grad():
            self.features = compute_features(self.model, [target.encoding for target in self.batch], 0)

    def loss(self, objective: Objective) -> float:
        """Return the loss of the batch."""
        return objective(self.model, self.batch, self.features).item()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A tiny model with its teacher and texts."""
    return World(tmp_path / "bert")


def test_new_and_rehearsed_texts_are_averaged_separately(world: World) -> None:
    """Without a teacher, the loss is the sum of both heads' means over new texts and over rehearsed texts."""
    parts = world.batch[:6], world.batch[6:]
    expected = 0.0
    for part in parts:
        with torch.no_grad():
            own = compute_features(world.model, [target.encoding for target in part], 0)
        labels = torch.tensor([target.label for target in part])
        allowed = torch.cat([torch.from_numpy(target.allowed) for target in part])
        expected += label_nll(world.model.classifier(own.pooled), labels).item()
        expected += 8 * partial_label_nll(world.model.ner(own.tokens), allowed).item()

    assert world.loss(Objective(ner_weight=8.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("adapted", "expected"),
    [("ner", (0.25, 8.0)), ("classifier", (1.0, 2.0)), (None, (1.0, 8.0))],
)
def test_the_protected_head_has_its_weight(world: World, adapted: HeadName | None, expected: tuple[float, ...]) -> None:
    """One weight scales all losses of the protected head, and another one the NER loss."""
    total = 0.0
    for part in (world.batch[:6], world.batch[6:]):
        with torch.no_grad():
            own = compute_features(world.model, [target.encoding for target in part], 0)
        labels = torch.tensor([target.label for target in part])
        allowed = torch.cat([torch.from_numpy(target.allowed) for target in part])
        total += expected[0] * label_nll(world.model.classifier(own.pooled), labels).item()
        total += expected[1] * partial_label_nll(world.model.ner(own.tokens), allowed).item()

    objective = Objective(ner_weight=8.0, protected_weight=0.25, adapted=adapted)

    assert world.loss(objective) == pytest.approx(total, rel=1e-5)


def test_rehearsed_texts_have_their_weight(world: World) -> None:
    """One weight scales all losses on rehearsed texts, including distillation, and leaves those on new texts unchanged."""
    held = Distillation(world.teacher, protected=2.0, retained=3.0, retained_on_new=0.0, repair=0.0, temperature=2.0)
    nothing, half, whole = (
        world.loss(Objective(adapted="ner", distillation=held, rehearsed_weight=weight)) for weight in (0.0, 0.5, 1.0)
    )

    assert half == pytest.approx((nothing + whole) / 2, rel=1e-5)
    del world.batch[6:]
    with torch.no_grad():
        world.features = compute_features(world.model, [target.encoding for target in world.batch], 0)
    assert nothing == pytest.approx(world.loss(Objective(adapted="ner", distillation=held)), rel=1e-5) != whole


@pytest.mark.parametrize("on_new", [0.0, 0.7])
def test_the_teacher_adds_distillation(world: World, on_new: float) -> None:
    """The protected head is distilled on all texts, old rows of the adapted head on rehearsed texts or on request on new ones, and new texts are repaired."""
    own = Distillation(world.teacher, protected=2.0, retained=3.0, retained_on_new=on_new, repair=0.25, temperature=2.0)
    expected = 0.0
    for number, part in enumerate((world.batch[:6], world.batch[6:])):
        encodings = [target.encoding for target in part]
        with torch.no_grad():
            features = compute_features(world.model, encodings, 0)
            old = world.teacher.answer(encodings)
            logits = world.model.classifier(features.pooled), world.model.ner(features.tokens)
        allowed = torch.cat([torch.from_numpy(target.allowed) for target in part])
        expected += label_nll(logits[0], torch.tensor([target.label for target in part])).item()
        expected += repaired_nll(logits[1], allowed, old.ner, (0.25, 1.0)[number]).item()
        expected += 2.0 * distillation(logits[0], old.classifier, 2.0).item()
        expected += (on_new, 3.0)[number] * distillation(logits[1], old.ner, 2.0).item()

    assert world.loss(Objective(adapted="ner", distillation=own)) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_whose_labels_were_replaced_is_not_heard(world: World) -> None:
    """With replaced labels, the teacher is used for the protected head only."""
    own = Distillation(world.teacher, protected=0.0, retained=5.0, retained_on_new=5.0, repair=1.0, temperature=2.0)

    heard = world.loss(Objective(adapted="ner", distillation=own))
    not_heard = world.loss(Objective(adapted="ner", forgets=True, distillation=own))

    assert not_heard == pytest.approx(world.loss(Objective()), rel=1e-6)
    assert heard != pytest.approx(not_heard, rel=1e-3)

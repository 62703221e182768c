"""Watches the protected task during training, and says when to go back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twofold_checkpoint.events import GuardLooked
from twofold_checkpoint.labels import LabelSet

from twofold_trainer.features import FeatureSource
from twofold_trainer.metrics import HeadScore, standard_error
from twofold_trainer.model import TwofoldModel
from twofold_trainer.recipe import EXPECTED_FLIPS
from twofold_trainer.scoring import Judge

Action = Literal["none", "restore", "leave"]

EARLY_STEPS = 200
"""Most of the damage is done early (arXiv:2501.13453), so the guard looks often at first."""
EARLY_EVERY = 25
LOOKS_PER_EPOCH = 4


def looks(step: int, epoch_steps: int) -> bool:
    """Tell whether the guard looks after a stage's step, counted from one."""
    if step <= EARLY_STEPS and step % EARLY_EVERY == 0:
        return True
    return step % max(EARLY_EVERY, epoch_steps // LOOKS_PER_EPOCH) == 0


ALARM = 3.0
"""How many times its allowance a fall must be before the guard steps in at once. Smaller ones pass as rates fall; what
has not passed by the end of an epoch is not kept."""


def decide(fallen: float, allowed: float, breaches: int) -> Action:
    """Choose what to do when the protected score has *fallen* by so much: first go back, then leave the stage."""
    if fallen <= ALARM * allowed + 1e-9:
        return "none"
    return "leave" if breaches else "restore"


def allowance(margin: float, before: HeadScore, after: HeadScore) -> float:
    """Return the fall that the guard lets pass: half the margin, but not less than chance does on these examples.

    *margin* is in points (0.01 of a score). Chance is one standard error of the difference, as the answers that changed
    show it, or where EXPECTED_FLIPS of them change if that is more.
    """
    chance = math.sqrt(EXPECTED_FLIPS / max(1, before.examples))
    return max(margin / 200, chance, standard_error(before, after))


@dataclass(frozen=True, slots=True)
class Look:
    """What a look saw: how much of the protected score is lost, negative if it rose, and how much may be."""

    fallen: float
    allowed: float

    @property
    def passes(self) -> bool:
        """Whether what is lost may be."""
        return self.fallen <= self.allowed + 1e-9


@dataclass(frozen=True, slots=True)
class Guard:
    """Hold the protected task's dev examples and what the base scored on them. *margin* is in points."""

    model: TwofoldModel
    judge: Judge
    labels: LabelSet
    baseline: HeadScore
    margin: float

    def look(self, source: FeatureSource) -> Look:
        """Score the model as it is."""
        score = self.judge.score(self.model, self.labels, source)
        assert score is not None, "A guard without examples was asked. This is a bug."
        return Look(self.baseline.value - score.value, allowance(self.margin, self.baseline, score))

    def event(self, step: int, look: Look, action: Action) -> GuardLooked:
        """Say what was seen and what is done about it."""
        return GuardLooked(
            step=step,
            baseline=self.baseline.value,
            value=self.baseline.value - look.fallen,
            allowed=look.allowed,
            examples=len(self.judge.examples),
            action=action,
        )

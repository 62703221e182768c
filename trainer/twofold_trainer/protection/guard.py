"""Watches the protected task during training, and says when to go back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.protocol.events import GuardChecked

from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.recipe import EXPECTED_FLIPS
from twofold_trainer.scoring.scorer import Scorer

Action = Literal["none", "restore", "leave"]

EARLY_STEPS = 200
"""Most of the damage is done early (arXiv:2501.13453), so the guard looks often at first."""
EARLY_EVERY = 25
CHECKS_PER_EPOCH = 4


def is_check_due(step: int, epoch_steps: int) -> bool:
    """Tell whether the guard looks after a stage's step, counted from one."""
    if step <= EARLY_STEPS and step % EARLY_EVERY == 0:
        return True
    return step % max(EARLY_EVERY, epoch_steps // CHECKS_PER_EPOCH) == 0


ALARM_RATIO = 3.0
"""How many times its allowance a fall must be before the guard steps in at once. Smaller ones pass as rates fall; what
has not passed by the end of an epoch is not kept."""


def decide(drop: float, allowed: float, breaches: int) -> Action:
    """Choose what to do when the protected score has *fallen* by so much: first go back, then leave the stage."""
    if drop <= ALARM_RATIO * allowed + 1e-9:
        return "none"
    return "leave" if breaches else "restore"


def allowance(margin: float, examples: int) -> float:
    """Return the fall that the guard lets pass: half the margin, but not less than chance does on so few examples.

    *margin* is in points (0.01 of a score). One standard error of the difference, where EXPECTED_FLIPS of the answers
    change, is chance.
    """
    return max(margin / 200, math.sqrt(EXPECTED_FLIPS / max(1, examples)))


@dataclass(frozen=True, slots=True)
class Guard:
    """Hold the protected task's dev examples and what the base scored on them."""

    model: TwofoldModel
    scorer: Scorer
    labels: LabelSet
    baseline: float
    allowed: float

    def score_drop(self, source: FeatureSource) -> float:
        """Score the model as it is; returns how much of the protected score is lost, negative if it rose."""
        score = self.scorer.score(self.model, self.labels, source)
        assert score is not None, "A guard without examples was asked. This is a bug."
        return self.baseline - score.value

    def event(self, step: int, drop: float, action: Action) -> GuardChecked:
        """Say what was seen and what is done about it."""
        return GuardChecked(
            step=step,
            baseline=self.baseline,
            value=self.baseline - drop,
            allowed=self.allowed,
            examples=len(self.scorer.examples),
            action=action,
        )

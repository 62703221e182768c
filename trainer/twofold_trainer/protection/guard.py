"""The guard: checks the protected task during training and decides when to restore the best state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.protocol.events import GuardChecked

from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.scoring.noninferiority import EXPECTED_FLIPS
from twofold_trainer.scoring.scorer import Scorer

Action = Literal["none", "restore", "leave"]

EARLY_STEPS = 200
"""Steps with frequent checks: most forgetting happens early (arXiv:2501.13453)."""
EARLY_EVERY = 25
CHECKS_PER_EPOCH = 4


def is_check_due(step: int, epoch_steps: int) -> bool:
    """Tell whether the guard checks after this step of a stage, counted from 1."""
    if step <= EARLY_STEPS and step % EARLY_EVERY == 0:
        return True
    return step % max(EARLY_EVERY, epoch_steps // CHECKS_PER_EPOCH) == 0


ALARM_RATIO = 3.0
"""The guard acts at once on a drop above this multiple of the allowance. Smaller drops often recover as learning rates decay;
a state that has not recovered by the end of an epoch is rejected."""


def decide(drop: float, allowed: float, breaches: int) -> Action:
    """Return the action for a *drop* of the protected score: restore at the first breach, leave the stage at the second."""
    if drop <= ALARM_RATIO * allowed + 1e-9:
        return "none"
    return "leave" if breaches else "restore"


def allowance(margin: float, examples: int) -> float:
    """Return the drop that the guard accepts: half the margin, but at least one standard error.

    *margin* is in points (0.01 of a score). The standard error is that of the score difference when EXPECTED_FLIPS of the
    answers change.
    """
    return max(margin / 200, math.sqrt(EXPECTED_FLIPS / max(1, examples)))


@dataclass(frozen=True, slots=True)
class Guard:
    """Scores the protected task on dev examples and compares it with the base's score."""

    model: TwofoldModel
    scorer: Scorer
    labels: LabelSet
    baseline: float
    allowed: float

    def score_drop(self, source: FeatureSource) -> float:
        """Return the drop of the protected score of the current model; negative if it rose."""
        score = self.scorer.score(self.model, self.labels, source)
        assert score is not None, "A guard has no examples. This is a bug."
        return self.baseline - score.value

    def event(self, step: int, drop: float, action: Action) -> GuardChecked:
        """Return the event of a check."""
        return GuardChecked(
            step=step,
            baseline=self.baseline,
            value=self.baseline - drop,
            allowed=self.allowed,
            examples=len(self.scorer.examples),
            action=action,
        )

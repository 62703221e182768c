"""The dev score: what training compares its states by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.protocol.events import ScoreMeasured

from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.scoring.scorer import Scorer
from twofold_trainer.scoring.scores import METRIC_OF, HeadScore


@dataclass(frozen=True, slots=True)
class DevEvaluator:
    """Measures the dev score: the mean of several scorers over the dev examples, which the gate never uses."""

    scorers: tuple[Scorer, ...]
    labels: LabelSet

    def measure(self, model: TwofoldModel, source: FeatureSource | None) -> ScoreMeasured:
        """Return the dev score of the model, or 0 if there are no dev examples."""
        scores = self._scores(model, source)
        return ScoreMeasured(
            figure="dev",
            moment="during",
            metric=METRIC_OF[self.scorers[0].head],
            value=sum(score.value for score in scores) / len(scores) if scores else 0.0,
            examples=sum(score.examples for score in scores),
        )

    def noise_margin(self, flips: float) -> float:
        """Return the standard error of the dev score when the share *flips* of the answers to new examples changes."""
        return math.sqrt(flips / max(1, len(self.scorers[0].examples))) / len(self.scorers)

    def scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[float]:
        """Return the score of each scorer that has examples."""
        return [score.value for score in self._scores(model, source)]

    def _scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[HeadScore]:
        return [score for scorer in self.scorers if (score := scorer.score(model, self.labels, source)) is not None]

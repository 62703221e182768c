"""Calibration of a head's new labels against its old ones after training.

The shares of new and old examples in training differ from those at serving time, which biases the head toward one side.
A single offset on the biases of all new rows corrects this. See the bias correction of Wu et al. 2019 (arXiv:1905.13260)
and the logit adjustment of Menon et al. 2021 (arXiv:2007.07314).
"""

from __future__ import annotations

import torch

from twofold_trainer.modeling.features import FeatureCache, FeatureSource
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.scoring.scorer import BATCH_SIZE
from twofold_trainer.training.dev_evaluator import DevEvaluator

MIN_GAIN = 0.001
"""Smallest dev-score gain, beyond noise, for which new labels get a bias offset."""
OFFSETS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Candidate bias offsets of new labels, in logits."""
OFFSET_FLIP_RATE = 0.03
"""Share of the answers to new texts that a bias offset changes: one of 37 examples is noise."""
MAX_OFFSET_COST = 0.01
"""Largest drop of the old or the new dev score that an offset may cause."""
DROP_WEIGHT = 3.0
"""Weight, in the choice of the offset, of the old labels' dev-score drop since the base."""


def calibrate_new_label_bias(
    model: TwofoldModel, dev_evaluator: DevEvaluator, source: FeatureSource, old: int, *, baseline: float | None = None
) -> float:
    """Add the offset with the best dev score to the biases of all rows after the first *old*, and return it in logits.

    The offset must gain more than noise, and may cost no scorer more than MAX_OFFSET_COST: neither the new nor the old
    labels win at the expense of the others. With a *baseline*, the amount by which the second scorer (the old labels)
    falls below it counts DROP_WEIGHT times. The texts run through the encoder once; each candidate offset recomputes
    only the head's logits.
    """
    head = model.head(dev_evaluator.scorers[0].head)
    cache = FeatureCache()
    for _ in cache.fill(
        source, [encoding for scorer in dev_evaluator.scorers for encoding in scorer.encodings], rows=BATCH_SIZE
    ):
        pass
    trained = head.bias.detach().clone()

    def apply_offset(offset: float) -> None:
        with torch.no_grad():
            head.bias.copy_(trained)
            head.bias[old:] += offset

    def scores(offset: float) -> list[float]:
        apply_offset(offset)
        return dev_evaluator.scores(model, cache.get)

    def utility(scores: list[float]) -> float:
        drop = 0.0 if baseline is None or len(scores) < 2 else max(0.0, baseline - scores[1])
        return sum(scores) - DROP_WEIGHT * drop

    original_scores = scores(0.0)
    best, best_utility = (
        0.0,
        utility(original_scores) + len(original_scores) * (MIN_GAIN + dev_evaluator.noise_margin(OFFSET_FLIP_RATE)),
    )
    for offset in sorted(OFFSETS, key=abs):
        candidate_scores = scores(offset)
        if utility(candidate_scores) > best_utility and all(
            new >= before - MAX_OFFSET_COST for new, before in zip(candidate_scores, original_scores, strict=True)
        ):
            best, best_utility = offset, utility(candidate_scores)
    apply_offset(best)
    return best

"""How a head's new rows stand against its old ones, once both are learnt.

Training sees new and old examples in shares that say nothing of how often they will be asked for, and what was learnt
last shouts loudest, or what is held shouts it down. One number added to the biases of all new rows sets that right: after
the bias correction of Wu et al. 2019 (arXiv:1905.13260) and the logit adjustment of Menon et al. 2021 (arXiv:2007.07314).
"""

from __future__ import annotations

import torch

from twofold_trainer.modeling.features import FeatureCache, FeatureSource
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.recipe import DROP_WEIGHT, MAX_OFFSET_COST, MIN_GAIN, OFFSET_FLIP_RATE, OFFSETS
from twofold_trainer.scoring.scorer import ROWS
from twofold_trainer.training.loop import DevEvaluator


def calibrate_new_label_bias(
    model: TwofoldModel, dev_evaluator: DevEvaluator, source: FeatureSource, old: int, *, baseline: float | None = None
) -> float:
    """Add to the biases of the rows after the first *old* what does best by the yardstick, and return it, in logits.

    It must gain more than chance does, and no judge may lose more than MAX_OFFSET_COST by it: what is new does not win at the
    cost of what is old, nor the other way.
    With a *floor*, what the second judge's score, that of the old rows, lies below it counts DROP_WEIGHT times as much.
    The texts are run once, and only the head's last sum is done again for each number that is tried.
    """
    head = model.head(dev_evaluator.scorers[0].head)
    cache = FeatureCache()
    for _ in cache.fill(
        source, [encoding for scorer in dev_evaluator.scorers for encoding in scorer.encodings], rows=ROWS
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

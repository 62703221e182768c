"""How a head's new rows stand against its old ones, once both are learnt.

Training sees new and old examples in shares that say nothing of how often they will be asked for, and what was learnt
last shouts loudest, or what is held shouts it down. One number added to the biases of all new rows sets that right: after
the bias correction of Wu et al. 2019 (arXiv:1905.13260) and the logit adjustment of Menon et al. 2021 (arXiv:2007.07314).
"""

from __future__ import annotations

import torch

from twofold_trainer.modeling.features import FeatureCache, FeatureSource
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.recipe import FALL_WEIGHT, LEAD_COST, LED_FLIPS, MIN_GAIN, OFFSETS
from twofold_trainer.scoring.scorer import ROWS
from twofold_trainer.training.loop import DevEvaluator


def balance(
    model: TwofoldModel, yardstick: DevEvaluator, source: FeatureSource, old: int, *, floor: float | None = None
) -> float:
    """Add to the biases of the rows after the first *old* what does best by the yardstick, and return it, in logits.

    It must gain more than chance does, and no judge may lose more than LEAD_COST by it: what is new does not win at the
    cost of what is old, nor the other way.
    With a *floor*, what the second judge's score, that of the old rows, lies below it counts FALL_WEIGHT times as much.
    The texts are run once, and only the head's last sum is done again for each number that is tried.
    """
    head = model.head(yardstick.judges[0].head)
    cache = FeatureCache()
    for _ in cache.fill(source, [encoding for judge in yardstick.judges for encoding in judge.encodings], rows=ROWS):
        pass
    trained = head.bias.detach().clone()

    def lead(offset: float) -> None:
        with torch.no_grad():
            head.bias.copy_(trained)
            head.bias[old:] += offset

    def scores(offset: float) -> list[float]:
        lead(offset)
        return yardstick.scores(model, cache.get)

    def worth(scores: list[float]) -> float:
        fallen = 0.0 if floor is None or len(scores) < 2 else max(0.0, floor - scores[1])
        return sum(scores) - FALL_WEIGHT * fallen

    unmoved = scores(0.0)
    best, most = 0.0, worth(unmoved) + len(unmoved) * (MIN_GAIN + yardstick.chance(LED_FLIPS))
    for offset in sorted(OFFSETS, key=abs):
        tried = scores(offset)
        if worth(tried) > most and all(new >= before - LEAD_COST for new, before in zip(tried, unmoved, strict=True)):
            best, most = offset, worth(tried)
    lead(best)
    return best

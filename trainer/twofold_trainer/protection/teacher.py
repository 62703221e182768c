"""The checkpoint that is adapted, as it answered before: what distillation holds the model to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from twofold_checkpoint.encoding import Encoding

from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.modeling.model import TwofoldModel


class TeacherLogits(NamedTuple):
    """Logits of texts, flat: (texts, labels) and (tokens, tags), of the rows that the teacher has."""

    classifier: Tensor
    ner: Tensor


class Teacher:
    """Hold frozen copies of a model's heads over features that no longer change.

    Over cached features a teacher costs no forward pass. *source* must give what the model read when it was copied.
    """

    def __init__(self, model: TwofoldModel, source: FeatureSource) -> None:
        self._classifier = copy.deepcopy(model.classifier).requires_grad_(False)
        self._ner = copy.deepcopy(model.ner).requires_grad_(False)
        self._source = source

    def answer(self, encodings: Sequence[Encoding]) -> TeacherLogits:
        """Answer texts as the model did."""
        with torch.no_grad():
            features = self._source(encodings)
            return TeacherLogits(self._classifier(features.pooled), self._ner(features.tokens))

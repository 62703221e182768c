"""The teacher of distillation: the base checkpoint's heads, frozen before training."""

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
    """Logits of a batch, flat: (texts, labels) and (tokens, tags), for the labels of the teacher."""

    classifier: Tensor
    ner: Tensor


class Teacher:
    """Frozen copies of a model's heads on top of fixed features.

    With cached features the teacher needs no encoder pass. *source* must return the features that the model had when it
    was copied.
    """

    def __init__(self, model: TwofoldModel, source: FeatureSource) -> None:
        self._classifier = copy.deepcopy(model.classifier).requires_grad_(False)
        self._ner = copy.deepcopy(model.ner).requires_grad_(False)
        self._source = source

    def answer(self, encodings: Sequence[Encoding]) -> TeacherLogits:
        """Return the teacher's logits of texts."""
        with torch.no_grad():
            features = self._source(encodings)
            return TeacherLogits(self._classifier(features.pooled), self._ner(features.tokens))

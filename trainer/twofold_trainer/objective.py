"""What a stage minimises, summed in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from twofold_checkpoint.manifest import HEADS, HeadName, other

from twofold_trainer.features import Features
from twofold_trainer.losses import distillation, label_nll, partial_label_nll, repaired_nll
from twofold_trainer.model import TwofoldModel
from twofold_trainer.targets import Target
from twofold_trainer.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Distillation:
    """Say how firmly the model is held to its teacher: weights beside the losses of the labels, and a temperature."""

    teacher: Teacher
    protected: float
    """Weight for the head that is not adapted, on every text."""
    retained: float
    """Weight for the old labels of the adapted head, on texts that are rehearsed."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Objective:
    """Hold what counts: the labels of *heads*, and what a teacher says of *adapted* and of the other head."""

    heads: tuple[HeadName, ...] = HEADS
    ner_weight: float = 1.0
    """Weight of the NER head's mean loss per token beside the classifier's mean loss per text."""
    adapted: HeadName | None = None
    forgets: bool = False
    """Whether the adapted head's labels were replaced, so that what the teacher says for it means nothing."""
    distillation: Distillation | None = None

    def __call__(self, model: TwofoldModel, batch: Sequence[Target], features: Features) -> Tensor:
        """Return the loss of a batch whose features were computed."""
        weights = {"classifier": 1.0, "ner": self.ner_weight}
        answers = None
        if self.distillation is not None:
            answers = self.distillation.teacher.answer([target.encoding for target in batch])
        total = features.pooled.sum() * 0.0
        for head in self.heads:
            logits = model.classifier(features.pooled) if head == "classifier" else model.ner(features.tokens)
            old = None if answers is None else (answers.classifier if head == "classifier" else answers.ner)
            if self.forgets and head == self.adapted:
                old = None
            total = total + weights[head] * self._labelled(head, batch, logits, old)
            if old is not None:
                total = total + weights[head] * self._distilled(head, batch, logits, old)
        return total

    def _labelled(self, head: HeadName, batch: Sequence[Target], logits: Tensor, old: Tensor | None) -> Tensor:
        if head == "classifier":
            return label_nll(logits, torch.tensor([target.label for target in batch]))
        allowed = torch.from_numpy(np.concatenate([target.allowed for target in batch]))
        if old is None or old.shape[1] == 0:
            return partial_label_nll(logits, allowed)
        return repaired_nll(logits, allowed, old)

    def _distilled(self, head: HeadName, batch: Sequence[Target], logits: Tensor, old: Tensor) -> Tensor:
        assert self.distillation is not None
        own = self.distillation
        if self.adapted is None or head == other(self.adapted):
            return own.protected * distillation(logits, old, own.temperature)
        rehearsed = torch.tensor([target.rehearsed for target in batch])
        if head == "ner":
            rehearsed = rehearsed.repeat_interleave(torch.tensor([len(target.encoding.ids) for target in batch]))
        return own.retained * distillation(logits[rehearsed], old[rehearsed], own.temperature)

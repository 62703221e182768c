"""What a stage minimises, summed in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_trainer.datasets.targets import Target
from twofold_trainer.modeling.features import Features
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.protection.teacher import Teacher, TeacherLogits
from twofold_trainer.training.losses import distillation, label_nll, partial_label_nll, repaired_nll


@dataclass(frozen=True, slots=True)
class Distillation:
    """Say how firmly the model is held to its teacher: weights beside the losses of the labels, and a temperature."""

    teacher: Teacher
    protected: float
    """Weight for the head that is not adapted, on every text."""
    retained: float
    """Weight for the old labels of the adapted head, on texts that are rehearsed."""
    retained_on_new: float
    """The same on new texts, which say little of the old labels; for where nothing is rehearsed (LwF)."""
    repair: float
    """Weight of what the teacher says of tokens that new texts leave open."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Objective:
    """Hold what counts: the labels of *heads*, and what a teacher says of *adapted* and of the other head.

    New and rehearsed texts are averaged apart and added, so that rehearsal takes nothing from what is new.
    """

    heads: tuple[HeadName, ...] = HEADS
    ner_weight: float = 1.0
    """Weight of the NER head's mean loss per token beside the classifier's mean loss per text."""
    protected_weight: float = 1.0
    """Weight of all that is said of the head that is not adapted, beside what is said of the one that is."""
    rehearsed_weight: float = 1.0
    """Weight of all that is said of rehearsed texts, beside what is said of new ones."""
    adapted: HeadName | None = None
    forgets: bool = False
    """Whether the adapted head's labels were replaced, so that what the teacher says for it means nothing."""
    distillation: Distillation | None = None

    def __call__(self, model: TwofoldModel, batch: Sequence[Target], features: Features) -> Tensor:
        """Return the loss of a batch whose features were computed."""
        answers = None
        if self.distillation is not None:
            answers = self.distillation.teacher.answer([target.encoding for target in batch])
        total = features.pooled.sum() * 0.0
        for head in self.heads:
            logits = model.classifier(features.pooled) if head == "classifier" else model.ner(features.tokens)
            for rehearsed in sorted({target.rehearsed for target in batch}):
                part = self._part(head, batch, logits, answers, rehearsed=rehearsed)
                total = total + self._weight(head) * (self.rehearsed_weight if rehearsed else 1.0) * part
        return total

    def _weight(self, head: HeadName) -> float:
        own = self.ner_weight if head == "ner" else 1.0
        return own if self.adapted in (None, head) else own * self.protected_weight

    def _part(
        self, head: HeadName, batch: Sequence[Target], logits: Tensor, answers: TeacherLogits | None, *, rehearsed: bool
    ) -> Tensor:
        """Return the loss of one head on the new or on the rehearsed texts."""
        own, old = [target for target in batch if target.rehearsed == rehearsed], None
        if answers is not None and not (self.forgets and head == self.adapted):
            old = answers.classifier if head == "classifier" else answers.ner
        if len(own) < len(batch):
            rows = torch.tensor([target.rehearsed == rehearsed for target in batch])
            if head == "ner":
                rows = rows.repeat_interleave(torch.tensor([len(target.encoding.ids) for target in batch]))
            logits, old = logits[rows], None if old is None else old[rows]
        if head == "classifier":
            loss = label_nll(logits, torch.tensor([target.label for target in own], dtype=torch.long))
        else:
            masks = [target.allowed for target in own]
            allowed = torch.from_numpy(np.concatenate(masks)) if masks else torch.ones_like(logits, dtype=torch.bool)
            if old is None or self.distillation is None:
                loss = partial_label_nll(logits, allowed)
            else:
                loss = repaired_nll(logits, allowed, old, 1.0 if rehearsed else self.distillation.repair)
        if old is not None and self.distillation is not None:
            weight = self.distillation.protected
            if head == self.adapted:
                weight = self.distillation.retained if rehearsed else self.distillation.retained_on_new
            if weight:
                loss = loss + weight * distillation(logits, old, self.distillation.temperature)
        return loss

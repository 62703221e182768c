"""The training objective of a stage: the weighted sum of its loss terms."""

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
    """Weights of the distillation terms relative to the label losses, and their temperature."""

    teacher: Teacher
    protected: float
    """Weight for the protected head, on every text."""
    retained: float
    """Weight for the old labels of the adapted head, on rehearsed texts."""
    retained_on_new: float
    """Weight for the old labels of the adapted head, on new texts; used when nothing is rehearsed (LwF)."""
    repair: float
    """Weight of the teacher's tags for tokens that new texts leave unannotated."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a batch: label losses of *heads*, and distillation for the adapted and the protected head.

    New and rehearsed texts are averaged separately and then added, so that rehearsal does not dilute the new texts.
    """

    heads: tuple[HeadName, ...] = HEADS
    ner_weight: float = 1.0
    """Weight of the NER head's mean loss per token, relative to the classifier's mean loss per text."""
    protected_weight: float = 1.0
    """Weight of all losses of the protected head, relative to those of the adapted head."""
    rehearsed_weight: float = 1.0
    """Weight of all losses on rehearsed texts, relative to those on new texts."""
    adapted: HeadName | None = None
    forgets: bool = False
    """Whether the adapted head's labels were replaced, which makes its teacher logits meaningless."""
    distillation: Distillation | None = None

    def __call__(self, model: TwofoldModel, batch: Sequence[Target], features: Features) -> Tensor:
        """Return the scalar loss of a batch from its features."""
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
        weight = self.ner_weight if head == "ner" else 1.0
        return weight if self.adapted in (None, head) else weight * self.protected_weight

    def _part(
        self, head: HeadName, batch: Sequence[Target], logits: Tensor, answers: TeacherLogits | None, *, rehearsed: bool
    ) -> Tensor:
        """Return the loss of a head on either the new or the rehearsed texts."""
        targets, old = [target for target in batch if target.rehearsed == rehearsed], None
        if answers is not None and not (self.forgets and head == self.adapted):
            old = answers.classifier if head == "classifier" else answers.ner
        if len(targets) < len(batch):
            rows = torch.tensor([target.rehearsed == rehearsed for target in batch])
            if head == "ner":
                rows = rows.repeat_interleave(torch.tensor([len(target.encoding.ids) for target in batch]))
            logits, old = logits[rows], None if old is None else old[rows]
        if head == "classifier":
            loss = label_nll(logits, torch.tensor([target.label for target in targets], dtype=torch.long))
        else:
            masks = [target.allowed for target in targets]
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

"""What training minimises, term by term: small pure functions of logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of (texts, labels) logits; a label below zero is unknown and not counted."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[known], labels[known])


def partial_label_nll(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return the mean of -log p(any allowed tag) over tokens; *logits* and the mask *allowed* are (tokens, tags).

    A token for which every tag is allowed teaches nothing and is not counted. With one allowed tag this is the cross
    entropy. See Cour et al. 2011, "Learning from Partial Labels" (JMLR 12).
    """
    informative = ~allowed.all(dim=1)
    if not bool(informative.any()):
        return logits.sum() * 0.0
    logits, allowed = logits[informative], allowed[informative]
    total = torch.logsumexp(logits, dim=1)
    permitted = torch.logsumexp(logits.masked_fill(~allowed, -torch.inf), dim=1)
    return (total - permitted).mean()


def repaired_nll(logits: Tensor, allowed: Tensor, teacher: Tensor, weight: float = 1.0) -> Tensor:
    """Return the mean of -log p(any allowed tag), plus *weight* times that of what the teacher says of these tags.

    Where several tags of *logits* (tokens, tags) are allowed, the data does not say which. The second term is then the
    cross entropy, among the allowed tags, against what the teacher, whose *teacher* logits are (tokens, old tags),
    believes of them. So data that does not annotate the old types does not teach that they are O. With a weight of one
    the sum is the cross entropy against the teacher's answer, renormalised: the pseudo-labels of Douillard et al. 2021,
    "PLOP" (CVPR), and Monaikul et al. 2021 (AAAI), kept soft. Tokens of which all is allowed count not.
    """
    informative = ~allowed.all(dim=1)
    if not bool(informative.any()):
        return logits.sum() * 0.0
    logits, allowed, teacher = logits[informative], allowed[informative], teacher[informative]
    inside = logits.masked_fill(~allowed, -torch.inf)
    permitted = torch.logsumexp(inside, dim=1)
    loss = (torch.logsumexp(logits, dim=1) - permitted).mean()
    if not weight:
        return loss
    known = torch.full_like(logits, -torch.inf)
    known[:, : teacher.shape[1]] = teacher
    # One allowed tag needs no teacher, and may be one that the teacher does not have.
    alone = allowed.sum(dim=1, keepdim=True) == 1
    beliefs = torch.where(alone, torch.zeros_like(known), known).masked_fill(~allowed, -torch.inf).softmax(dim=1)
    surprise = (permitted.unsqueeze(1) - logits).masked_fill(~allowed, 0.0)
    return loss + weight * (beliefs * surprise).sum(dim=1).mean()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of T^2 KL(teacher || student) at temperature T, over the rows that the teacher has.

    (rows, classes); the student may have more classes, appended. Hinton et al. 2015, arXiv:1503.02531.
    """
    if not len(logits):
        return logits.sum() * 0.0
    student = F.log_softmax(logits[:, : teacher.shape[1]] / temperature, dim=1)
    target = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(student, target, log_target=True, reduction="batchmean") * temperature**2

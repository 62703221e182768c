"""The loss terms of training: small pure functions of logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of (texts, labels) logits; negative labels are unknown and ignored."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[known], labels[known])


def partial_label_nll(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return the mean of -log p(any allowed tag) over tokens; *logits* and the mask *allowed* are (tokens, tags).

    Tokens for which every tag is allowed carry no information and are ignored. With one allowed tag this is the cross
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
    """Return the mean of -log p(any allowed tag), plus *weight* times a cross entropy against the teacher.

    *logits* and the mask *allowed* are (tokens, tags); the *teacher* logits are (tokens, old tags). Where several tags
    are allowed, the data does not say which one is right. The second term is the cross entropy among the allowed tags
    against the teacher's distribution over them, so that data without annotations of the old types does not teach
    that their spans are O. With a weight of 1 the sum is the cross entropy against the renormalised teacher: soft
    versions of the pseudo-labels of Douillard et al. 2021, "PLOP" (CVPR), and Monaikul et al. 2021 (AAAI). Tokens for
    which every tag is allowed are ignored.
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
    # A single allowed tag needs no teacher, which may not even know the tag.
    alone = allowed.sum(dim=1, keepdim=True) == 1
    beliefs = torch.where(alone, torch.zeros_like(known), known).masked_fill(~allowed, -torch.inf).softmax(dim=1)
    surprise = (permitted.unsqueeze(1) - logits).masked_fill(~allowed, 0.0)
    return loss + weight * (beliefs * surprise).sum(dim=1).mean()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of T^2 KL(teacher || student) at temperature T, over the classes of the teacher.

    Both are (rows, classes); the student may have more classes at the end. See Hinton et al. 2015, arXiv:1503.02531.
    """
    if not len(logits):
        return logits.sum() * 0.0
    student = F.log_softmax(logits[:, : teacher.shape[1]] / temperature, dim=1)
    target = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(student, target, log_target=True, reduction="batchmean") * temperature**2

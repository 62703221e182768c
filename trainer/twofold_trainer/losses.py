"""What training minimises: small pure functions, summed in one place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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


def label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of (texts, labels) logits; a label below zero is unknown and not counted."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[known], labels[known])


def total_loss(
    classifier_logits: Tensor, labels: Tensor, ner_logits: Tensor, allowed: Tensor, *, ner_weight: float = 1.0
) -> Tensor:
    """Add the losses of both heads. What shall also count (distillation, penalties) is added here."""
    return label_nll(classifier_logits, labels) + ner_weight * partial_label_nll(ner_logits, allowed)

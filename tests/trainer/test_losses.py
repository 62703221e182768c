"""Losses against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from twofold_trainer.losses import label_nll, partial_label_nll, total_loss

LN = [math.log(1.0), math.log(2.0), math.log(5.0)]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ([[1, 0, 0]], math.log(8 / 1)),
        ([[0, 1, 0]], math.log(8 / 2)),
        ([[1, 1, 0]], math.log(8 / 3)),
        ([[0, 1, 1]], math.log(8 / 7)),
        ([[1, 1, 1]], 0.0),
        ([[1, 0, 0], [0, 1, 1]], (math.log(8) + math.log(8 / 7)) / 2),
        ([[1, 0, 0], [1, 1, 1]], math.log(8)),
    ],
)
def test_partial_label_loss_is_minus_log_of_what_is_allowed(allowed: list[list[int]], expected: float) -> None:
    """The loss is the mean of -log of the allowed probability; a token that may be anything is not counted."""
    logits = torch.tensor([LN] * len(allowed))

    assert partial_label_nll(logits, torch.tensor(allowed, dtype=torch.bool)).item() == pytest.approx(expected)


def test_one_allowed_tag_is_cross_entropy() -> None:
    """With one allowed tag for each token, loss and gradient are those of the cross entropy."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tags = torch.tensor([0, 1, 2, 3, 4, 0])

    ours = partial_label_nll(logits, F.one_hot(tags, 5).bool())
    theirs = F.cross_entropy(logits, tags)

    assert ours.item() == pytest.approx(theirs.item())
    assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)), atol=1e-6)


def test_open_types_get_no_push_towards_outside() -> None:
    """A token that may be O or an unannotated type pushes only the annotated types down, and keeps the odds of the rest."""
    logits = torch.zeros(1, 5, requires_grad=True)
    partial_label_nll(logits, torch.tensor([[True, False, False, True, True]])).backward()

    gradient = logits.grad[0]
    assert gradient[1] > 0
    assert gradient[2] > 0
    assert gradient[0].item() == pytest.approx(gradient[3].item())
    assert gradient[0] < 0


def test_unknown_labels_are_not_counted() -> None:
    """A text without a label adds nothing to the classifier's loss; a batch of such texts has loss zero and a gradient."""
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)

    some = label_nll(logits, torch.tensor([2, -1, 0]))
    none = label_nll(logits, torch.tensor([-1, -1, -1]))

    assert some.item() == pytest.approx(F.cross_entropy(logits[[0, 2]], torch.tensor([2, 0])).item())
    assert none.item() == 0.0
    assert none.requires_grad


def test_total_is_the_sum_of_both_heads() -> None:
    """The total loss adds what each head's loss gives alone."""
    classifier, ner = torch.randn(2, 3), torch.randn(4, 5)
    labels, allowed = torch.tensor([0, 2]), torch.eye(5).bool()[:4]

    total = total_loss(classifier, labels, ner, allowed)

    assert total.item() == pytest.approx((label_nll(classifier, labels) + partial_label_nll(ner, allowed)).item())

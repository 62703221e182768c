"""Losses compared with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from twofold_trainer.training.losses import distillation, label_nll, partial_label_nll, repaired_nll

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
def test_partial_label_loss_is_minus_log_of_the_allowed_probability(allowed: list[list[int]], expected: float) -> None:
    """The loss is the mean of -log of the allowed probability; tokens that may have any tag do not count."""
    logits = torch.tensor([LN] * len(allowed))

    assert partial_label_nll(logits, torch.tensor(allowed, dtype=torch.bool)).item() == pytest.approx(expected)


def test_one_allowed_tag_is_cross_entropy() -> None:
    """With one allowed tag per token, loss and gradient are those of the cross entropy."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tags = torch.tensor([0, 1, 2, 3, 4, 0])

    ours = partial_label_nll(logits, F.one_hot(tags, 5).bool())
    theirs = F.cross_entropy(logits, tags)

    assert ours.item() == pytest.approx(theirs.item())
    assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)), atol=1e-6)


def test_open_types_get_no_push_towards_outside() -> None:
    """A token that may be O or an unannotated type lowers only the annotated types, and keeps the odds of the rest."""
    logits = torch.zeros(1, 5, requires_grad=True)
    partial_label_nll(logits, torch.tensor([[True, False, False, True, True]])).backward()

    gradient = logits.grad[0]
    assert gradient[1] > 0
    assert gradient[2] > 0
    assert gradient[0].item() == pytest.approx(gradient[3].item())
    assert gradient[0] < 0


def test_unknown_labels_are_not_counted() -> None:
    """A text without a label adds nothing to the classifier's loss; a batch of such texts has a loss of zero and a gradient."""
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)

    values = label_nll(logits, torch.tensor([2, -1, 0]))
    none = label_nll(logits, torch.tensor([-1, -1, -1]))

    assert values.item() == pytest.approx(F.cross_entropy(logits[[0, 2]], torch.tensor([2, 0])).item())
    assert none.item() == 0.0
    assert none.requires_grad


def test_one_allowed_tag_needs_no_teacher() -> None:
    """For an annotated token, the repaired loss is the cross entropy, also for a tag that the teacher lacks."""
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    tags = torch.tensor([0, 4, 3, 1])

    repaired = repaired_nll(logits, F.one_hot(tags, 5).bool(), torch.randn(4, 3))

    assert repaired.item() == pytest.approx(F.cross_entropy(logits, tags).item())


def test_the_teacher_repairs_unannotated_types() -> None:
    """A token that may be O or an unannotated type learns the teacher's probabilities, renormalised over the allowed tags."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    allowed = torch.tensor([[True, True, False, False]])
    teacher = torch.tensor([[math.log(1.0), math.log(3.0), math.log(6.0)]])
    logits.requires_grad_()
    repaired_nll(logits, allowed, teacher).backward()

    # The gradient of a cross entropy is probability less target: the target is (1/4, 3/4, 0, 0).
    assert logits.grad[0].tolist() == pytest.approx([0.25 - 0.25, 0.25 - 0.75, 0.25, 0.25])


def test_repair_without_weight_is_the_partial_label_loss() -> None:
    """With weight 0 the repaired loss is the partial-label loss; each unit of weight adds the same amount, for open tokens only."""
    logits, teacher = torch.randn(5, 4), torch.randn(5, 3)
    allowed = torch.tensor([[True, True, False, False], [True, True, True, False], [False, False, False, True]])[
        [0, 1, 2, 0, 1]
    ]
    losses = [repaired_nll(logits, allowed, teacher, weight).item() for weight in (0.0, 0.25, 1.0)]

    assert losses[0] == pytest.approx(partial_label_nll(logits, allowed).item(), rel=1e-6)
    assert losses[1] - losses[0] == pytest.approx(0.25 * (losses[2] - losses[0]), rel=1e-4)
    assert losses[2] > losses[0]
    closed = allowed[2:3]
    assert repaired_nll(logits[2:3], closed, teacher[2:3], 5.0).item() == pytest.approx(
        partial_label_nll(logits[2:3], closed).item(), rel=1e-6
    )


def test_tokens_of_which_all_is_allowed_are_not_repaired() -> None:
    """An unannotated token adds nothing; a batch of such tokens has a loss of zero and a gradient."""
    logits = torch.randn(2, 3, requires_grad=True)
    loss = repaired_nll(logits, torch.ones(2, 3).bool(), torch.randn(2, 3))

    assert loss.item() == 0.0
    assert loss.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_zero_only_for_the_teachers_answers(temperature: float) -> None:
    """The loss is T^2 KL over the teacher's rows: zero for its own logits whatever the new rows are, and otherwise as computed by hand."""
    teacher = torch.tensor([[0.0, math.log(3.0) * temperature]])
    student = torch.tensor([[0.0, 0.0, 9.0]])
    by_hand = temperature**2 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))

    assert distillation(torch.tensor([[0.0, math.log(3.0) * temperature, -4.0]]), teacher, temperature).item() == (
        pytest.approx(0.0, abs=1e-6)
    )
    assert distillation(student, teacher, temperature).item() == pytest.approx(by_hand, rel=1e-5)


def test_distilling_nothing_is_zero() -> None:
    """A batch without rehearsed texts has a loss of zero, and a gradient."""
    logits = torch.randn(3, 4, requires_grad=True)

    assert distillation(logits[:0], torch.randn(0, 4), 2.0).item() == 0.0

"""Append rows for new labels and entity types, initialised from the mean features of their examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from twofold_checkpoint.manifest import HeadName

from twofold_trainer.datasets.targets import Target
from twofold_trainer.modeling.features import Features
from twofold_trainer.modeling.model import TwofoldModel, append_rows


def class_means(
    seen: Iterable[tuple[Target, Features]], head: HeadName, rows: Sequence[int], hidden_size: int
) -> tuple[Tensor, Tensor]:
    """Return the centred mean feature of each new row's examples (rows, hidden), and the overall mean (hidden,).

    The features of an encoder share a large common component; a row with it would match every text. A row without
    examples starts at zero.
    """
    index_of = {row: index for index, row in enumerate(rows)}
    sums = torch.zeros(len(rows), hidden_size)
    counts = torch.zeros(len(rows))
    total, everything = torch.zeros(hidden_size), 0
    for target, features in seen:
        if head == "classifier":
            known, own = [target.label], features.pooled
        else:
            single = torch.from_numpy(target.allowed.sum(axis=1) == 1)
            known = torch.from_numpy(target.allowed).int().argmax(dim=1)[single].tolist()
            own = features.tokens[single]
        total += own.sum(0)
        everything += len(own)
        for row, feature in zip(known, own, strict=True):
            if row in index_of:
                sums[index_of[row]] += feature
                counts[index_of[row]] += 1
    means = sums / counts.clamp(min=1).unsqueeze(1)
    centre = total / max(1, everything)
    centred = means - centre
    # If all examples belong to one class, its centred mean is zero; use the mean itself.
    alone = centred.norm(dim=1) < 1e-4 * means.norm(dim=1)
    centred[alone] = means[alone]
    centred[counts == 0] = 0.0
    return centred, centre


def clear_head(model: TwofoldModel, head: HeadName) -> None:
    """Remove a head's rows, in place. The NER head keeps the row of O, which does not depend on the types."""
    own, kept = model.head(head), 0 if head == "classifier" else 1
    own.weight = nn.Parameter(own.weight.detach()[:kept].clone())
    own.bias = nn.Parameter(own.bias.detach()[:kept].clone())
    own.out_features = kept


def grow_head(model: TwofoldModel, head: HeadName, rows: Tensor, centre: Tensor) -> None:
    """Append rows to a head of the model, in place."""
    grown = append_rows(model.head(head), rows, centre)
    if head == "classifier":
        model.classifier = grown
    else:
        model.ner = grown

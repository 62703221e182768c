"""New labels and entity types: rows put after the old ones, begun at the mean feature of their examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from twofold_checkpoint.manifest import HeadName

from twofold_trainer.datasets.targets import Target
from twofold_trainer.modeling.features import Features
from twofold_trainer.modeling.model import TwofoldModel, grow


def class_means(
    seen: Iterable[tuple[Target, Features]], head: HeadName, rows: Sequence[int], hidden_size: int
) -> tuple[Tensor, Tensor]:
    """Return (rows, hidden), for each new row the mean feature of its examples less that of all, and that of all.

    The features of one encoder share a large common part; a row that held it would answer to every text. A row without
    an example begins at zero.
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
    # One class alone is its own mean: then the mean itself must do.
    alone = centred.norm(dim=1) < 1e-4 * means.norm(dim=1)
    centred[alone] = means[alone]
    centred[counts == 0] = 0.0
    return centred, centre


def clear_head(model: TwofoldModel, head: HeadName) -> None:
    """Take a head's rows away, in place. Of the NER head the row of O stays, whose meaning no names change."""
    own, kept = model.head(head), 0 if head == "classifier" else 1
    own.weight = nn.Parameter(own.weight.detach()[:kept].clone())
    own.bias = nn.Parameter(own.bias.detach()[:kept].clone())
    own.out_features = kept


def grow_head(model: TwofoldModel, head: HeadName, rows: Tensor, centre: Tensor) -> None:
    """Append rows to a head of the model, in place."""
    grown = grow(model.head(head), rows, centre)
    if head == "classifier":
        model.classifier = grown
    else:
        model.ner = grown

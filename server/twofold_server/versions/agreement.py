"""Comparison of the predictions of two checkpoints for a text. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName


@dataclass(frozen=True, slots=True)
class SharedNames:
    """The label names that two checkpoints share. Only these can be compared."""

    labels: frozenset[str]
    entity_types: frozenset[str]

    @classmethod
    def of(cls, first: LabelSet, second: LabelSet) -> SharedNames:
        """Return the names in both label sets."""
        return cls(
            frozenset(first.labels) & frozenset(second.labels),
            frozenset(first.entity_types) & frozenset(second.entity_types),
        )


def agreements(first: Prediction, second: Prediction, shared: SharedNames) -> Mapping[HeadName, bool]:
    """Return for each head whether two predictions for a text agree. Heads that cannot be compared are omitted.

    The labels are compared if both are shared. Entities of shared types are compared if at least one prediction has any:
    counting texts without entities would hide a head that no longer finds entities.
    """
    agreed: dict[HeadName, bool] = {}
    labels = {prediction.labels[0].label for prediction in (first, second) if prediction.labels}
    if labels and labels <= shared.labels:
        agreed["classifier"] = len(labels) == 1
    spans = [
        {(span.start, span.end, span.type) for span in prediction.entities if span.type in shared.entity_types}
        for prediction in (first, second)
    ]
    if any(spans):
        agreed["ner"] = spans[0] == spans[1]
    return agreed

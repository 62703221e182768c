"""Whether two checkpoints say the same of a text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName


@dataclass(frozen=True, slots=True)
class Shared:
    """The names that two checkpoints have in common. What only one of them can say proves neither right."""

    labels: frozenset[str]
    entity_types: frozenset[str]

    @classmethod
    def of(cls, first: LabelSet, second: LabelSet) -> Shared:
        """Return the names that both have."""
        return cls(
            frozenset(first.labels) & frozenset(second.labels),
            frozenset(first.entity_types) & frozenset(second.entity_types),
        )


def agreements(first: Prediction, second: Prediction, shared: Shared) -> Mapping[HeadName, bool]:
    """Say for each head whether two answers to a text agree; a head is left out where they cannot be compared.

    Labels are compared if both checkpoints know both; of the entities, those of types that both know, if either answer has
    any: texts in which neither finds anything would hide a head that finds nothing any more.
    """
    agreed: dict[HeadName, bool] = {}
    labels = {answer.labels[0].label for answer in (first, second) if answer.labels}
    if labels and labels <= shared.labels:
        agreed["classifier"] = len(labels) == 1
    spans = [
        {(span.start, span.end, span.type) for span in answer.entities if span.type in shared.entity_types}
        for answer in (first, second)
    ]
    if any(spans):
        agreed["ner"] = spans[0] == spans[1]
    return agreed

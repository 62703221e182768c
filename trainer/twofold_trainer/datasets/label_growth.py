"""The labels of a head, and their extension by a job's new labels."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twofold_checkpoint.examples import Example
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.job import TrainingRequest

from twofold_trainer.datasets.splits import types_of
from twofold_trainer.errors import RefusedError


def head_labels(labels: LabelSet, head: HeadName) -> tuple[str, ...]:
    """Return the names of a head's rows: labels, or entity types."""
    return labels.labels if head == "classifier" else labels.entity_types


def extend_labels(request: TrainingRequest, old: LabelSet, examples: Sequence[Example]) -> LabelSet:
    """Return the labels after the job: the old ones, and the examples' new ones if the label policy allows them.

    Raises RefusedError if the policy is "fixed" and the examples have new labels.
    """
    if request.label_policy == "replace":
        emptied: dict[str, tuple[str, ...]] = {"labels" if request.head == "classifier" else "entity_types": ()}
        old = msgspec.structs.replace(old, **emptied)
    if request.head == "classifier":
        grown = old.append(labels=(example.label for example in examples if example.label is not None))
    else:
        grown = old.append(entity_types=types_of(examples))
    added = head_labels(grown, request.head)[len(head_labels(old, request.head)) :]
    if added and request.label_policy == "fixed":
        # Do not quote the example: reasons become events, which must not contain texts.
        kind = "label" if request.head == "classifier" else "entity type"
        raise RefusedError(
            f"the {kind} {added[0]!r} is new, and the label policy is fixed; correct the name, or use the policy append"
        )
    return grown

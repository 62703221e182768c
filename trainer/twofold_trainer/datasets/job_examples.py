"""Read the examples of a job for the head that it adapts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twofold_checkpoint.examples import Example, read_examples
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.job import TrainerJob

from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.datasets.splits import types_of, with_annotated_types
from twofold_trainer.errors import RefusedError


def read_job_examples(job: TrainerJob, base: LabelSet) -> tuple[list[Example], list[Example] | None, list[str]]:
    """Return a job's training examples, its held-out examples, and notes on ignored annotations.

    *base* contains the labels of the job's base checkpoint. Raises RefusedError.
    """
    head = job.request.head
    train = list(read_examples(job.train))
    dev = None if job.dev is None else list(read_examples(job.dev))
    everything = [*train, *(dev or ())]
    field, unused_field = ("label", "entities") if head == "classifier" else ("entities", "label")
    annotated = annotated_for(everything, head)
    notes = []
    if ignored := len(everything) - len(annotated):
        notes.append(f"{ignored} of {len(everything)} examples have no {field} and were ignored.")
    if not annotated_for(train, head):
        raise RefusedError(f"no training example has {field}; annotate examples for the {head} head")
    types = job.request.annotated_types or types_of(everything)
    if head == "ner" and (unlisted := [name for name in types_of(annotated) if name not in types]):
        raise RefusedError(
            f"annotated_types: the examples have entities of type {unlisted[0]!r}, which is not listed; "
            "list it, or leave annotated_types empty"
        )
    train = _select(train, head, types)
    dev = None if dev is None else _select(dev, head, types, protected=base)
    total = sum(getattr(example, unused_field) is not None for example in annotated)
    scoring = sum(getattr(example, unused_field) is not None for example in dev or ())
    if scoring:
        notes.append(f"The {unused_field} of {scoring} held-out examples helps to judge the protected head.")
    if unused := total - scoring:
        notes.append(f"The {unused_field} of {unused} examples was not used: this job adapts the {head} head.")
    return train, dev, notes


def _select(
    examples: Sequence[Example], head: HeadName, types: tuple[str, ...], *, protected: LabelSet | None = None
) -> list[Example]:
    """Return the examples annotated for the head, without their annotations for the other head.

    An example keeps those annotations if *protected* contains all their names: they then help to score the protected head.
    """
    selected = []
    for example in annotated_for(examples, head):
        removed: dict[str, None] = {}
        if head == "classifier":
            if (
                protected is None
                or example.entities is None
                or not {span.type for span in example.entities} <= {*protected.entity_types}
            ):
                removed = {"entities": None, "annotated_types": None}
        elif protected is None or example.label not in protected.labels:
            removed = {"label": None}
        selected.append(msgspec.structs.replace(example, **removed))
    return selected if head == "classifier" else with_annotated_types(selected, types)

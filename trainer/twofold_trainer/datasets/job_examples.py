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


def read_job_examples(job: TrainerJob, known: LabelSet) -> tuple[list[Example], list[Example] | None, list[str]]:
    """Return a job's training examples, its held-out examples, and notes on ignored annotations. Raises RefusedError."""
    head = job.request.head
    given = list(read_examples(job.train)), None if job.dev is None else list(read_examples(job.dev))
    everything = [*given[0], *(given[1] or ())]
    field = "label" if head == "classifier" else "entities"
    used = annotated_for(everything, head)
    notes = []
    if ignored := len(everything) - len(used):
        notes.append(f"{ignored} of {len(everything)} examples have no {field} and were ignored.")
    if not annotated_for(given[0], head):
        raise RefusedError(f"no training example has {field}, so there is nothing to adapt the {head} head to")
    types = job.request.annotated_types or types_of(everything)
    if head == "ner" and (strange := [name for name in types_of(used) if name not in types]):
        raise RefusedError(f"annotated_types: the examples have entities of type {strange[0]!r}, which is not listed")
    train = _only(given[0], head, types)
    dev = None if given[1] is None else _only(given[1], head, types, judges=known)
    field = "entities" if head == "classifier" else "label"
    annotated = sum(getattr(example, field) is not None for example in used)
    judging = sum(getattr(example, field) is not None for example in dev or ())
    if judging:
        notes.append(f"The {field} of {judging} held-out examples helps to judge the protected head.")
    if unused := annotated - judging:
        notes.append(f"The {field} of {unused} examples was not used: this job adapts the {head} head.")
    return train, dev, notes


def _only(
    examples: Sequence[Example], head: HeadName, types: tuple[str, ...], *, judges: LabelSet | None = None
) -> list[Example]:
    """Return the examples annotated for the head, without their annotations for the other head.

    Held-out examples keep those annotations if *judges* contains their names: they help to score the other head.
    """
    kept = []
    for example in annotated_for(examples, head):
        removed: dict[str, None] = {}
        if head == "classifier":
            if (
                judges is None
                or example.entities is None
                or not {span.type for span in example.entities} <= {*judges.entity_types}
            ):
                removed = {"entities": None, "annotated_types": None}
        elif judges is None or example.label not in judges.labels:
            removed = {"label": None}
        kept.append(msgspec.structs.replace(example, **removed))
    return kept if head == "classifier" else with_annotated_types(kept, types)

"""Validation of a job specification against its data and base, before a job exists. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from twofold_checkpoint.labels import LabelSet

from twofold_server.adaptation.dataset_writer import Contents
from twofold_server.errors import Violation
from twofold_server.jobs.model import JobSpec

_ANNOTATION = {"classifier": "label", "ner": "entities"}


def validate_request(spec: JobSpec, contents: Contents, base: LabelSet) -> Iterator[Violation]:
    """Yield the violations that make the job impossible, with the request's field names."""
    request = spec.request
    if not contents.annotated[request.head]:
        yield _violation(
            spec,
            "train",
            f"no training example has {_ANNOTATION[request.head]}, which the {request.head} head needs; annotate at least one, "
            "or adapt the other head",
        )
    if annotated := frozenset(request.annotated_types):
        for name, location in contents.entity_types.items():
            if name not in annotated:
                yield _violation(
                    spec, location, f"{name!r} is not among dataset.annotated_types; add it there or correct it"
                )
    if request.label_policy == "fixed":
        known, used, kind = (
            (base.labels, contents.labels, "label")
            if request.head == "classifier"
            else (base.entity_types, contents.entity_types, "entity type")
        )
        for name, location in used.items():
            if name not in known:
                remedy = "correct it, or use LABEL_POLICY_APPEND"
                yield _violation(spec, location, f"{name!r} is not a {kind} of the base checkpoint; {remedy}")


def _violation(spec: JobSpec, location: str, problem: str) -> Violation:
    if spec.upload_id:
        return Violation("dataset.upload_id", f"{location}: {problem}")
    return Violation(f"dataset.inline.{location}", problem)

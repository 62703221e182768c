"""The requests of AdaptationService. adaptation/validation.py checks what depends on the data or the base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from twofold.v1 import adaptation_pb2 as pb
from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example, Span, check_example
from twofold_checkpoint.manifest import MemoryMode
from twofold_checkpoint.protocol.hyperparameter_ranges import RANGES
from twofold_checkpoint.protocol.job import (
    RETAINED_MARGIN,
    Exact,
    Freeze,
    Hyperparameters,
    LabelPolicy,
    Statistical,
    TrainingRequest,
)

from twofold_server.adaptation.dataset_writer import MAX_NAME_LENGTH, MAX_NAMES, Inline
from twofold_server.adaptation.uploads import ExampleBatch, Header
from twofold_server.api.wire.inference import HEAD_NAMES
from twofold_server.errors import MAX_VIOLATIONS, InvalidRequestError, Violation, raise_if_invalid
from twofold_server.jobs.model import JobSpec, PromoteName

FREEZES: dict[pb.FreezeMode.ValueType, Freeze] = {
    pb.FREEZE_MODE_UNSPECIFIED: "auto",
    pb.FREEZE_MODE_AUTO: "auto",
    pb.FREEZE_MODE_ALL: "all",
    pb.FREEZE_MODE_BACKBONE: "backbone",
    pb.FREEZE_MODE_HEAD: "head",
    pb.FREEZE_MODE_STAGED: "staged",
}
PROMOTES: dict[pb.PromotePolicy.ValueType, PromoteName] = {
    pb.PROMOTE_POLICY_UNSPECIFIED: "auto",
    pb.PROMOTE_POLICY_AUTO: "auto",
    pb.PROMOTE_POLICY_MANUAL: "manual",
    pb.PROMOTE_POLICY_NEVER: "never",
}
LABEL_POLICIES: dict[pb.LabelPolicy.ValueType, LabelPolicy] = {
    pb.LABEL_POLICY_UNSPECIFIED: "append",
    pb.LABEL_POLICY_FIXED: "fixed",
    pb.LABEL_POLICY_APPEND: "append",
    pb.LABEL_POLICY_REPLACE: "replace",
}
MEMORIES: dict[pb.MemoryMode.ValueType, MemoryMode | None] = {
    pb.MEMORY_MODE_UNSPECIFIED: None,
    pb.MEMORY_MODE_EXAMPLES: "examples",
    pb.MEMORY_MODE_STATISTICS: "statistics",
    pb.MEMORY_MODE_NONE: "none",
}
_MOVE_BACKBONE = {pb.FREEZE_MODE_HEAD, pb.FREEZE_MODE_STAGED}
_MAX_REQUEST_ID = 200


def read_adapt(request: pb.AdaptRequest) -> tuple[JobSpec, Inline | None]:
    """Read a request and its inline examples. Raises InvalidRequestError with every invalid field, up to a limit."""
    wrong = list(itertools.islice(_wrong_fields(request), MAX_VIOLATIONS))
    inline = None
    if request.dataset.WhichOneof("source") == "inline":
        parts = [_read_inline(getattr(request.dataset.inline, part), part, wrong) for part in ("train", "dev")]
        inline = Inline(*parts)
    raise_if_invalid(wrong)
    training = TrainingRequest(
        head=HEAD_NAMES[request.head],
        freeze=FREEZES[request.freeze],
        protection=_read_protection(request.protection),
        label_policy=LABEL_POLICIES[request.label_policy],
        retained_margin=request.retained_margin if request.HasField("retained_margin") else RETAINED_MARGIN,
        annotated_types=tuple(request.dataset.annotated_types),
        hyperparameters=Hyperparameters(**_given(request.hyperparameters)),
        memory=MEMORIES[request.memory],
        max_runtime=_seconds(request) if request.HasField("max_runtime") else None,
        seed=request.seed,
        validate_only=request.validate_only,
    )
    spec = JobSpec(
        request=training,
        upload_id=request.dataset.upload_id,
        base=request.base_checkpoint or "current",
        promote=PROMOTES[request.promote],
        shadow_share=request.shadow_share if request.HasField("shadow_share") else None,
        request_id=request.request_id,
    )
    return spec, inline


def read_example(message: pb.Example) -> Example:
    """Read one example without checks."""
    entities = None
    if message.HasField("entities"):
        entities = tuple(
            Span(start=entity.start, end=entity.end, type=entity.type) for entity in message.entities.entities
        )
    return Example(text=message.text, label=message.label if message.HasField("label") else None, entities=entities)


def read_upload(message: pb.UploadDatasetRequest) -> Header | ExampleBatch:
    """Read one message of an upload. Its examples are checked when they are stored."""
    match message.WhichOneof("part"):
        case "header":
            return Header(message.header.display_name)
        case "train":
            return ExampleBatch("train", [read_example(example) for example in message.train.examples])
        case "dev":
            return ExampleBatch("dev", [read_example(example) for example in message.dev.examples])
    raise InvalidRequestError(Violation("part", "is not set; send a header, train or dev examples in every message"))


def _read_inline(messages: Any, part: str, wrong: list[Violation]) -> tuple[Example, ...]:
    """Read and check examples, and collect their violations."""
    examples = []
    for index, message in enumerate(messages):
        try:
            examples.append(check_example(read_example(message), source=part, line=index + 1))
        except ExampleError as error:
            wrong.append(Violation(f"dataset.inline.{part}[{index}].{error.field}", error.reason))
            if len(wrong) >= MAX_VIOLATIONS:
                break
    return tuple(examples)


def _read_protection(message: pb.Protection) -> Exact | Statistical:
    if message.WhichOneof("kind") == "exact":
        return Exact()
    return Statistical(margin=message.statistical.margin) if message.statistical.HasField("margin") else Statistical()


def _wrong_fields(request: pb.AdaptRequest) -> Iterator[Violation]:
    """Yield the violations of everything but the examples."""
    if request.head not in HEAD_NAMES:
        yield Violation("head", f"unknown head {request.head}; use HEAD_CLASSIFIER or HEAD_NER")
    yield from _wrong_dataset(request.dataset)
    for name, known in (
        ("freeze", FREEZES),
        ("label_policy", LABEL_POLICIES),
        ("promote", PROMOTES),
        ("memory", MEMORIES),
    ):
        value = getattr(request, name)
        if value not in known:
            yield Violation(name, f"unknown value {value}; use 0 to {max(known)}, or leave it out")
    yield from _wrong_protection(request)
    for name, value in _given(request.hyperparameters).items():
        if name in RANGES and not RANGES[name].holds(value):
            remedy = "leave it out to let the trainer choose"
            yield Violation(f"hyperparameters.{name}", f"{value:g} must be {RANGES[name]}; {remedy}")
    if request.HasField("max_runtime") and _seconds(request) <= 0:
        yield Violation("max_runtime", f"{_seconds(request):g} s must be above 0; leave it out for no limit")
    if request.seed < 0:
        yield Violation("seed", f"{request.seed} is negative; use 0 or more")
    if not 0 <= request.shadow_share <= 1:
        message = f"{request.shadow_share:g} must be from 0 to 1; omit it for the setting of the server"
        yield Violation("shadow_share", message)
    if len(request.request_id) > _MAX_REQUEST_ID:
        message = f"has {len(request.request_id)} characters; write at most {_MAX_REQUEST_ID}, such as a UUID"
        yield Violation("request_id", message)
    if "\0" in request.request_id:  # PostgreSQL cannot store it.
        yield Violation("request_id", "contains the character U+0000; use printable characters, such as a UUID")


def _wrong_dataset(dataset: pb.Dataset) -> Iterator[Violation]:
    source = dataset.WhichOneof("source")
    if source is None:
        yield Violation("dataset", "is missing; send examples inline, or the upload_id that UploadDataset returned")
    elif source == "upload_id" and not dataset.upload_id:
        yield Violation("dataset.upload_id", "is empty; use the upload_id that UploadDataset returned")
    elif source == "inline" and not dataset.inline.train:
        yield Violation("dataset.inline.train", "is empty; send at least one example")
    if len(dataset.annotated_types) > MAX_NAMES:
        message = f"has {len(dataset.annotated_types)} types; write at most {MAX_NAMES}"
        yield Violation("dataset.annotated_types", message)
        return
    for index, name in enumerate(dataset.annotated_types):
        if len(name) > MAX_NAME_LENGTH:
            message = f"{name[:40]!r}... has {len(name)} characters; write at most {MAX_NAME_LENGTH}"
            yield Violation(f"dataset.annotated_types[{index}]", message)
        if not name or name != name.strip():
            message = f"{name!r} is empty or has surrounding white space; use the type exactly as in the examples"
            yield Violation(f"dataset.annotated_types[{index}]", message)


def _wrong_protection(request: pb.AdaptRequest) -> Iterator[Violation]:
    margin = request.protection.statistical.margin
    if not 0 <= margin <= 100:
        yield Violation("protection.statistical.margin", f"{margin:g} must be from 0 to 100 points")
    if not 0 <= request.retained_margin <= 100:
        yield Violation("retained_margin", f"{request.retained_margin:g} must be from 0 to 100 points")
    if request.protection.WhichOneof("kind") == "exact" and request.freeze in _MOVE_BACKBONE:
        mode = pb.FreezeMode.Name(request.freeze)
        message = f"{mode} moves the backbone under the protected head, which exact protection forbids"
        yield Violation("freeze", f"{message}; use FREEZE_MODE_BACKBONE or AUTO, or statistical protection")


def _given(message: pb.Hyperparameters) -> dict[str, Any]:
    """Return the hyperparameters that are set, by name."""
    return {field.name: value for field, value in message.ListFields()}


def _seconds(request: pb.AdaptRequest) -> float:
    return float(request.max_runtime.seconds + request.max_runtime.nanos / 1e9)

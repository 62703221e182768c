"""Messages of InferenceService."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from twofold.v1 import inference_pb2 as pb
from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_server.api.wire.offsets import OffsetUnit, offset_converter
from twofold_server.config.settings import LimitSettings
from twofold_server.errors import Violation, raise_if_invalid
from twofold_server.inference.engine import Engine
from twofold_server.inference.predictor import Answers, Timings
from twofold_server.inference.tasks import Embedding

HEAD_NAMES: dict[int, HeadName] = {pb.HEAD_CLASSIFIER: "classifier", pb.HEAD_NER: "ner"}
HEAD_NUMBERS: dict[HeadName, pb.Head.ValueType] = {"classifier": pb.HEAD_CLASSIFIER, "ner": pb.HEAD_NER}
_UNITS: dict[int, OffsetUnit] = {
    pb.OFFSET_UNIT_UNSPECIFIED: "code_point",
    pb.OFFSET_UNIT_CODE_POINT: "code_point",
    pb.OFFSET_UNIT_UTF16: "utf16",
    pb.OFFSET_UNIT_UTF8: "utf8",
}
_MAX_HEADS = 16
"""Maximum entries of `heads`. There are two heads; repeated names are accepted, millions of names are not."""


@dataclass(frozen=True, slots=True)
class PredictCall:
    """A checked PredictRequest. *top* is 0 if the classifier is not requested."""

    texts: list[str]
    top: int
    entities: bool
    unit: OffsetUnit


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """A checked EmbedRequest."""

    texts: list[str]
    include_tokens: bool
    unit: OffsetUnit


def read_predict(request: pb.PredictRequest, limits: LimitSettings) -> PredictCall:
    """Read and check a request. Raises InvalidRequestError with every invalid field."""
    raise_if_invalid(
        itertools.chain(
            _check_texts(request.texts, limits),
            _check_unit(request.offset_unit),
            _check_heads(request.heads),
            _check_top(request.top_labels),
        )
    )
    heads = {HEAD_NAMES[head] for head in request.heads} or set(HEADS)
    top = max(1, request.top_labels) if "classifier" in heads else 0
    return PredictCall(list(request.texts), top, "ner" in heads, _UNITS[request.offset_unit])


def read_embed(request: pb.EmbedRequest, limits: LimitSettings) -> EmbedCall:
    """Read and check a request. Raises InvalidRequestError with every invalid field."""
    raise_if_invalid(itertools.chain(_check_texts(request.texts, limits), _check_unit(request.offset_unit)))
    return EmbedCall(list(request.texts), request.include_tokens, _UNITS[request.offset_unit])


def _check_texts(texts: Sequence[str], limits: LimitSettings) -> Iterator[Violation]:
    if not texts:
        yield Violation("texts", "is empty; send at least one text")
    elif len(texts) > limits.max_texts:
        yield Violation("texts", f"has {len(texts)} texts; send at most {limits.max_texts} per request")
    else:
        yield from check_lengths(texts, limits, "texts")


def check_lengths(texts: Iterable[str], limits: LimitSettings, field: str) -> Iterator[Violation]:
    """Yield a violation for each text with too many characters, as an element of *field*."""
    for index, text in enumerate(texts):
        if len(text) > limits.max_characters:
            message = f"has {len(text)} characters; the maximum is {limits.max_characters}, so split the text"
            yield Violation(f"{field}[{index}]", message)


def _check_heads(heads: Sequence[int]) -> Iterator[Violation]:
    if len(heads) > _MAX_HEADS:
        yield Violation("heads", f"has {len(heads)} entries; the maximum is {_MAX_HEADS}")
        return
    for index, head in enumerate(heads):
        if head not in HEAD_NAMES:
            message = f"unknown head {head}; use HEAD_CLASSIFIER or HEAD_NER, or omit heads for both"
            yield Violation(f"heads[{index}]", message)


def _check_top(top: int) -> Iterator[Violation]:
    if top < 0:
        yield Violation("top_labels", f"{top} is negative; use the number of labels to return")


def _check_unit(unit: int) -> Iterator[Violation]:
    if unit not in _UNITS:
        yield Violation(
            "offset_unit", f"unknown unit {unit}; use OFFSET_UNIT_CODE_POINT, OFFSET_UNIT_UTF16 or OFFSET_UNIT_UTF8"
        )


def write_predictions(call: PredictCall, answers: Answers[Prediction]) -> pb.PredictResponse:
    """Return the response."""
    response = pb.PredictResponse(
        checkpoint_id=shared_checkpoint_id(answers.checkpoint_ids), timings=_write_timings(answers.timings)
    )
    for text, prediction, checkpoint_id in zip(call.texts, answers.answers, answers.checkpoint_ids, strict=True):
        offset = offset_converter(text, call.unit)
        response.predictions.add(
            label=prediction.labels[0].label if prediction.labels else "",
            labels=[pb.LabelScore(label=label.label, score=label.score) for label in prediction.labels],
            entities=[
                pb.Entity(start=offset(entity.start), end=offset(entity.end), type=entity.type, score=entity.score)
                for entity in prediction.entities
            ],
            checkpoint_id=checkpoint_id,
        )
    return response


def write_embeddings(call: EmbedCall, answers: Answers[Embedding]) -> pb.EmbedResponse:
    """Return the response."""
    response = pb.EmbedResponse(
        checkpoint_id=shared_checkpoint_id(answers.checkpoint_ids), timings=_write_timings(answers.timings)
    )
    for text, embedding, checkpoint_id in zip(call.texts, answers.answers, answers.checkpoint_ids, strict=True):
        added = response.embeddings.add(pooled=embedding.pooled.tolist(), checkpoint_id=checkpoint_id)
        if call.include_tokens:
            offset = offset_converter(text, call.unit)
            for (start, end), vector in zip(embedding.offsets.tolist(), embedding.tokens.tolist(), strict=True):
                added.tokens.add(start=offset(start), end=offset(end), vector=vector)
    return response


def write_model(engine: Engine, limits: LimitSettings, version: str) -> pb.GetModelResponse:
    """Return the message of the live engine and the limits."""
    manifest = engine.checkpoint.manifest
    return pb.GetModelResponse(
        checkpoint_id=manifest.id,
        labels=manifest.labels.labels,
        entity_types=manifest.labels.entity_types,
        backbone=manifest.backbone,
        hidden_size=manifest.hidden_size,
        max_tokens=manifest.encoder.max_tokens,
        limits=pb.Limits(max_texts=limits.max_texts, max_characters=limits.max_characters),
        server_version=version,
        precision=engine.precision,
    )


def _write_timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        tokenize_seconds=timings.tokenize,
        queue_seconds=timings.queue,
        infer_seconds=timings.infer,
        decode_seconds=timings.decode,
    )


def shared_checkpoint_id(checkpoint_ids: Sequence[str]) -> str:
    """Return the id that all ids share; empty if a swap happened between them."""
    return checkpoint_ids[0] if len(set(checkpoint_ids)) == 1 else ""

"""Ask the live checkpoint."""

from collections.abc import Iterable, Sequence
from typing import Any, overload

from google.protobuf import wrappers_pb2

from twofold import _rpcs
from twofold._retry import Context, Retry
from twofold._steps import Flow
from twofold._types import Embedding, Embeddings, Head, Health, Model, OffsetUnit, Prediction, Predictions
from twofold._wire import enum_number, read
from twofold.v1 import inference_pb2

_HEAD = inference_pb2.DESCRIPTOR.enum_types_by_name["Head"]
_OFFSET_UNIT = inference_pb2.DESCRIPTOR.enum_types_by_name["OffsetUnit"]
_HEALTH = (Health.UNKNOWN, Health.SERVING, Health.NOT_SERVING, Health.SERVICE_UNKNOWN)


@overload
def predict(  # type: ignore[overload-overlap]  # A string is a sequence of strings, too.
    context: Context,
    texts: str,
    *,
    heads: Iterable[Head | str] = ...,
    offset_unit: OffsetUnit | str = ...,
    top_labels: int = ...,
    timeout: float | None = ...,
) -> Flow[Prediction]: ...
@overload
def predict(
    context: Context,
    texts: Sequence[str],
    *,
    heads: Iterable[Head | str] = ...,
    offset_unit: OffsetUnit | str = ...,
    top_labels: int = ...,
    timeout: float | None = ...,
) -> Flow[Predictions]: ...
def predict(
    context: Context,
    texts: str | Sequence[str],
    *,
    heads: Iterable[Head | str] = (),
    offset_unit: OffsetUnit | str = OffsetUnit.CODE_POINT,
    top_labels: int = 1,
    timeout: float | None = None,
) -> Flow[Any]:
    """
    Label a text and find its entities; a list of texts gives Predictions in its order.

    No *heads* means both. Raise InvalidArgumentError, OverloadedError, UnavailableError or DeadlineExceededError.
    """
    request = inference_pb2.PredictRequest(
        texts=[texts] if isinstance(texts, str) else texts,
        heads=[enum_number(_HEAD, Head(head)) for head in heads],
        offset_unit=enum_number(_OFFSET_UNIT, OffsetUnit(offset_unit)),
        top_labels=top_labels,
    )
    answers = read((yield from context.call(_rpcs.PREDICT, request, timeout)), Predictions)
    return answers[0] if isinstance(texts, str) else answers


@overload
def embed(  # type: ignore[overload-overlap]  # A string is a sequence of strings, too.
    context: Context,
    texts: str,
    *,
    include_tokens: bool = ...,
    offset_unit: OffsetUnit | str = ...,
    timeout: float | None = ...,
) -> Flow[Embedding]: ...
@overload
def embed(
    context: Context,
    texts: Sequence[str],
    *,
    include_tokens: bool = ...,
    offset_unit: OffsetUnit | str = ...,
    timeout: float | None = ...,
) -> Flow[Embeddings]: ...
def embed(
    context: Context,
    texts: str | Sequence[str],
    *,
    include_tokens: bool = False,
    offset_unit: OffsetUnit | str = OffsetUnit.CODE_POINT,
    timeout: float | None = None,
) -> Flow[Any]:
    """
    Return the encoder's features of a text; a list of texts gives Embeddings in its order.

    Raise as predict does.
    """
    request = inference_pb2.EmbedRequest(
        texts=[texts] if isinstance(texts, str) else texts,
        include_tokens=include_tokens,
        offset_unit=enum_number(_OFFSET_UNIT, OffsetUnit(offset_unit)),
    )
    answers = read((yield from context.call(_rpcs.EMBED, request, timeout)), Embeddings)
    return answers[0] if isinstance(texts, str) else answers


def model(context: Context, *, timeout: float | None = None) -> Flow[Model]:
    """Describe the live checkpoint and the limits of a request."""
    return read((yield from context.call(_rpcs.GET_MODEL, inference_pb2.GetModelRequest(), timeout)), Model)


def health(context: Context, service: str = "", *, timeout: float | None = None) -> Flow[Health]:
    """
    Ask grpc.health.v1 how *service* is, or the whole server; a server that cannot be reached is not retried.

    Raise NotFoundError for a service that the server does not have.
    """
    request = wrappers_pb2.StringValue(value=service)
    answer = yield from context.call(_rpcs.CHECK_HEALTH, request, timeout, retry=Retry(attempts=1))
    return _HEALTH[answer.value] if answer.value < len(_HEALTH) else Health.UNKNOWN

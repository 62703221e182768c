"""Ask the live checkpoint."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

from google.protobuf import wrappers_pb2

from twofold import _rpcs
from twofold._operations import Failure, Feed, Flow, Item, Open, Receive
from twofold._protobuf import enum_number, read
from twofold._retry import Context, Retry
from twofold._types.inference import Embedding, Embeddings, Head, Health, Model, OffsetUnit, Prediction, Predictions
from twofold.errors import error_of
from twofold.v1 import inference_pb2

_HEAD = inference_pb2.DESCRIPTOR.enum_types_by_name["Head"]
_OFFSET_UNIT = inference_pb2.DESCRIPTOR.enum_types_by_name["OffsetUnit"]
STREAMED = 32
"""Texts in one message of a stream: enough for a batch of the server's."""
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
    request = _predict_request([texts] if isinstance(texts, str) else texts, heads, offset_unit, top_labels)
    answers = read((yield from context.call(_rpcs.PREDICT, request, timeout)), Predictions)
    return answers[0] if isinstance(texts, str) else answers


def predict_stream(
    context: Context,  # noqa: ARG001 -- a stream is neither timed by default nor made again.
    texts: Iterable[str],
    *,
    heads: Iterable[Head | str] = (),
    offset_unit: OffsetUnit | str = OffsetUnit.CODE_POINT,
    top_labels: int = 1,
    timeout: float | None = None,
) -> Feed[Prediction]:
    """
    Iterate over the predictions of any number of texts, in their order, while more texts are sent.

    The texts are read only as fast as the server answers, so they may be a file or a generator without an end. A stream
    that breaks is not made again, because its texts are gone. *timeout* is for all of it; None means no limit. Raise as
    predict does, and what the texts raise when they are read.
    """
    blank = _predict_request((), heads, offset_unit, top_labels)
    broken: list[Exception] = []

    def requests() -> Iterator[inference_pb2.PredictStreamRequest]:
        unread = iter(texts)
        try:
            while some := list(islice(unread, STREAMED)):
                message = inference_pb2.PredictStreamRequest(request=blank)
                message.request.texts.extend(some)
                yield message
        except Exception as error:  # noqa: BLE001 -- raised again below, once what was sent before it is answered.
            # gRPC reads the texts out of our sight, and would only say that something went wrong there.
            broken.append(error)

    stream = yield Open(_rpcs.PREDICT_STREAM, requests(), timeout)
    try:
        while not isinstance(outcome := (yield Receive(stream)), Failure | None):
            for prediction in read(outcome.response, Predictions):
                yield Item(prediction)
    finally:
        stream.cancel()
    if outcome is not None:
        raise error_of(outcome)
    if broken:
        raise broken[0]


def _predict_request(
    texts: Sequence[str], heads: Iterable[Head | str], offset_unit: OffsetUnit | str, top_labels: int
) -> inference_pb2.PredictRequest:
    return inference_pb2.PredictRequest(
        texts=texts,
        heads=[enum_number(_HEAD, Head(head)) for head in heads],
        offset_unit=enum_number(_OFFSET_UNIT, OffsetUnit(offset_unit)),
        top_labels=top_labels,
    )


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

"""Predict, embed, and describe the live checkpoint."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

from google.protobuf import wrappers_pb2

from twofold import _rpcs
from twofold._context import ClientContext
from twofold._operations import Emit, Failure, Flow, OpenStream, Receive, StreamFlow
from twofold._protobuf import enum_to_proto, from_proto
from twofold._retry import Retry
from twofold._types.inference import Embedding, Embeddings, Head, Health, Model, OffsetUnit, Prediction, Predictions
from twofold.errors import error_of
from twofold.v1 import inference_pb2

_HEAD = inference_pb2.DESCRIPTOR.enum_types_by_name["Head"]
_OFFSET_UNIT = inference_pb2.DESCRIPTOR.enum_types_by_name["OffsetUnit"]
_STREAM_BATCH_SIZE = 32
"""Number of texts in one message of a stream, enough for a batch of the server."""
_HEALTH = (Health.UNKNOWN, Health.SERVING, Health.NOT_SERVING, Health.SERVICE_UNKNOWN)


@overload
def predict(  # type: ignore[overload-overlap]  # A string is also a sequence of strings.
    context: ClientContext,
    texts: str,
    *,
    heads: Iterable[Head | str] = ...,
    offset_unit: OffsetUnit | str = ...,
    top_labels: int = ...,
    timeout: float | None = ...,
) -> Flow[Prediction]: ...
@overload
def predict(
    context: ClientContext,
    texts: Sequence[str],
    *,
    heads: Iterable[Head | str] = ...,
    offset_unit: OffsetUnit | str = ...,
    top_labels: int = ...,
    timeout: float | None = ...,
) -> Flow[Predictions]: ...
def predict(
    context: ClientContext,
    texts: str | Sequence[str],
    *,
    heads: Iterable[Head | str] = (),
    offset_unit: OffsetUnit | str = OffsetUnit.CODE_POINT,
    top_labels: int = 1,
    timeout: float | None = None,
) -> Flow[Any]:
    """
    Return the prediction for a text, or Predictions for a list of texts, in the order of the texts.

    *heads* are the heads whose results are returned, by default both. *top_labels* is the number of labels with scores.
    Raise InvalidArgumentError, OverloadedError, UnavailableError or DeadlineExceededError.
    """
    request = _predict_request([texts] if isinstance(texts, str) else texts, heads, offset_unit, top_labels)
    predictions = from_proto((yield from context.call(_rpcs.PREDICT, request, timeout)), Predictions)
    return predictions[0] if isinstance(texts, str) else predictions


def predict_stream(
    context: ClientContext,  # noqa: ARG001 -- a stream has no default timeout and is not retried.
    texts: Iterable[str],
    *,
    heads: Iterable[Head | str] = (),
    offset_unit: OffsetUnit | str = OffsetUnit.CODE_POINT,
    top_labels: int = 1,
    timeout: float | None = None,
) -> StreamFlow[Prediction]:
    """
    Iterate over the predictions for any number of texts, in their order, while more texts are sent.

    The texts are read only as fast as the server answers, so *texts* may be a file or an infinite generator. A broken stream
    is not retried, because its texts have been consumed. *timeout* applies to the whole stream; None means no limit. Raise
    the errors of predict, and any error raised by *texts*.
    """
    template = _predict_request((), heads, offset_unit, top_labels)
    read_errors: list[Exception] = []

    def requests() -> Iterator[inference_pb2.PredictStreamRequest]:
        unread = iter(texts)
        try:
            while batch := list(islice(unread, _STREAM_BATCH_SIZE)):
                message = inference_pb2.PredictStreamRequest(request=template)
                message.request.texts.extend(batch)
                yield message
        except Exception as error:  # noqa: BLE001 -- raised below, after the texts sent before it are answered
            # gRPC consumes this generator in another thread and would replace the error with a generic one.
            read_errors.append(error)

    stream = yield OpenStream(_rpcs.PREDICT_STREAM, requests(), timeout)
    try:
        while not isinstance(outcome := (yield Receive(stream)), Failure | None):
            for prediction in from_proto(outcome.response, Predictions):
                yield Emit(prediction)
    finally:
        stream.cancel()
    if outcome is not None:
        raise error_of(outcome)
    if read_errors:
        raise read_errors[0]


def _predict_request(
    texts: Sequence[str], heads: Iterable[Head | str], offset_unit: OffsetUnit | str, top_labels: int
) -> inference_pb2.PredictRequest:
    return inference_pb2.PredictRequest(
        texts=texts,
        heads=[enum_to_proto(_HEAD, Head(head)) for head in heads],
        offset_unit=enum_to_proto(_OFFSET_UNIT, OffsetUnit(offset_unit)),
        top_labels=top_labels,
    )


@overload
def embed(  # type: ignore[overload-overlap]  # A string is also a sequence of strings.
    context: ClientContext,
    texts: str,
    *,
    include_tokens: bool = ...,
    offset_unit: OffsetUnit | str = ...,
    timeout: float | None = ...,
) -> Flow[Embedding]: ...
@overload
def embed(
    context: ClientContext,
    texts: Sequence[str],
    *,
    include_tokens: bool = ...,
    offset_unit: OffsetUnit | str = ...,
    timeout: float | None = ...,
) -> Flow[Embeddings]: ...
def embed(
    context: ClientContext,
    texts: str | Sequence[str],
    *,
    include_tokens: bool = False,
    offset_unit: OffsetUnit | str = OffsetUnit.CODE_POINT,
    timeout: float | None = None,
) -> Flow[Any]:
    """
    Return the encoder's features of a text, or Embeddings for a list of texts, in the order of the texts.

    *include_tokens* adds one vector per token. Raise the errors of predict.
    """
    request = inference_pb2.EmbedRequest(
        texts=[texts] if isinstance(texts, str) else texts,
        include_tokens=include_tokens,
        offset_unit=enum_to_proto(_OFFSET_UNIT, OffsetUnit(offset_unit)),
    )
    embeddings = from_proto((yield from context.call(_rpcs.EMBED, request, timeout)), Embeddings)
    return embeddings[0] if isinstance(texts, str) else embeddings


def model(context: ClientContext, *, timeout: float | None = None) -> Flow[Model]:
    """Return the live checkpoint and the limits of a request."""
    return from_proto((yield from context.call(_rpcs.GET_MODEL, inference_pb2.GetModelRequest(), timeout)), Model)


def health(context: ClientContext, service: str = "", *, timeout: float | None = None) -> Flow[Health]:
    """
    Return the health of *service*, by default of the whole server; the call is not retried.

    Raise NotFoundError if the server does not have the service.
    """
    request = wrappers_pb2.StringValue(value=service)
    response = yield from context.call(_rpcs.CHECK_HEALTH, request, timeout, retry=Retry(attempts=1))
    return _HEALTH[response.value] if response.value < len(_HEALTH) else Health.UNKNOWN

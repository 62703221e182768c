"""The interceptor: status codes, details and counters for every outcome."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from unittest import mock

import grpc
import pytest
from support.running_server import refusal, running
from twofold.v1 import inference_pb2 as pb
from twofold.v1.inference_pb2_grpc import InferenceServiceStub
from twofold_server.api.interceptor import ServerInterceptor, _abort
from twofold_server.errors import (
    STATUS,
    InvalidRequestError,
    OverloadedError,
    RateLimitedError,
    ServerError,
    Violation,
    status_of,
)
from twofold_server.inference.predictor import Predictor
from twofold_server.observability.metrics import Metrics


async def fails_with(store, error):
    """Let Predict fail with an error; return the caller's view and the counters."""
    async with running(store) as server:
        with mock.patch.object(Predictor, "predict", side_effect=error):
            code, message = await refusal(server.predict("rain"))
        counted = await server.metric("twofold_requests_total", method="Predict", code=code.name)
        in_flight = await server.metric("twofold_requests_in_flight", method="Predict")
        return code, message, counted, in_flight


@pytest.mark.parametrize("kind", [kind for kind in STATUS if issubclass(kind, ServerError)])
async def test_every_error_of_the_table_keeps_its_code_and_reason(kind, store):
    """Every error has the status code and the reason of the table, and is counted under its code."""
    made = {
        InvalidRequestError: lambda: InvalidRequestError(Violation("texts", "is wrong; write another")),
        OverloadedError: lambda: OverloadedError("full", retry_after=1.5),
        RateLimitedError: lambda: RateLimitedError("too many", retry_after=1.5),
    }
    error = made.get(kind, lambda: kind("what happened"))()

    code, message, counted, in_flight = await fails_with(store, error)

    assert (code, message.reason) == STATUS[kind]
    assert message.message == str(error)
    assert (message.retry_after, len(message.violations)) == (
        1.5 if issubclass(kind, OverloadedError) else None,
        1 if kind is InvalidRequestError else 0,
    )
    assert (counted, in_flight) == (1, 0)


async def test_grpc_retries_after_the_delay(store):
    """A gRPC client with a retry policy waits for the retry delay and gets its answer."""
    policy = {
        "maxAttempts": 2,
        "initialBackoff": "0.001s",
        "maxBackoff": "0.001s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    predict = Predictor.predict
    called_at = []

    async def shed_once(*args, **kwargs):
        called_at.append(time.monotonic())
        if len(called_at) == 1:
            raise OverloadedError("full", retry_after=0.2001)
        return await predict(*args, **kwargs)

    async with (
        running(store) as server,
        grpc.aio.insecure_channel(server.target, [("grpc.service_config", config)]) as channel,
    ):
        with mock.patch.object(Predictor, "predict", shed_once):
            answer = await InferenceServiceStub(channel).Predict(pb.PredictRequest(texts=["rain"]), timeout=30)
    assert answer.predictions[0].label == "a_weather"
    assert called_at[1] - called_at[0] >= 0.2


async def test_an_unknown_error_reveals_no_internals(store, caplog):
    """The caller gets INTERNAL and the request's id; the log has the id with the traceback."""
    with caplog.at_level(logging.ERROR):
        code, error, counted, _ = await fails_with(store, KeyError("/srv/secret/path"))

    assert (code, error.reason, counted) == (grpc.StatusCode.INTERNAL, "INTERNAL", 1)
    assert "secret" not in error.message
    [record] = [item for item in caplog.records if item.name == "twofold_server.api.interceptor"]
    assert record.request == error.metadata["request"]
    assert error.message.endswith(f"for request {record.request}")
    assert record.exc_info[0] is KeyError


async def test_long_messages_are_cut(store):
    """An error message is one line that fits into the trailers."""
    code, error, *_ = await fails_with(store, ServerErrorOfMany("x\n" * 5000))

    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "\n" not in error.message
    assert len(error.message) < 400


class ServerErrorOfMany(next(kind for kind in STATUS if kind.__name__ == "FailedPreconditionError")):
    """An error class that is not in the table."""


def test_a_kind_that_the_table_does_not_name_has_its_parents_code():
    """A class that is not in the table has the code of its base class."""
    assert status_of(ServerErrorOfMany()) == STATUS[ServerErrorOfMany.__mro__[1]]


async def test_hanging_up_ends_streams_of_responses():
    """When the server stops, an endless stream ends with UNAVAILABLE."""

    class Metrics:
        requests = request_seconds = in_flight = mock.MagicMock()

    async def forever(request, context):
        yield request
        await asyncio.Event().wait()

    interceptor = ServerInterceptor(Metrics())
    server = grpc.aio.server(interceptors=[interceptor])
    method = grpc.unary_stream_rpc_method_handler(forever)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("twofold.v1.Test", {"Watch": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream("/twofold.v1.Test/Watch")(b"x")
        assert await call.read() == b"x"
        interceptor.close_streams()
        await asyncio.wait_for(server.stop(30), 5)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_is_left_while_it_waits_ends_all_it_began():
    """If the caller leaves before a response, the method's cleanup runs at the end of the call."""

    class Context:
        def time_remaining(self):
            return None

    put_away, waits = [], asyncio.Event()

    async def slow(request, context):
        try:
            yield request
            waits.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            put_away.append("all")

    async def read():
        responses = ServerInterceptor(Metrics())._wrap_stream(slow, "/twofold.v1.Test/Watch")(b"x", Context())
        async for _ in responses:
            pass

    call = asyncio.create_task(read())
    await waits.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert put_away == ["all"]


async def test_a_stream_that_is_left_while_it_answers_is_no_bug():
    """If the caller leaves between two responses, the call is counted as CANCELLED."""

    class Context:
        def time_remaining(self):
            return None

    async def forever(request, context):
        while True:
            yield request

    metrics = Metrics()
    responses = ServerInterceptor(metrics)._wrap_stream(forever, "/twofold.v1.Test/Watch")(b"x", Context())
    assert await anext(responses) == b"x"
    await responses.aclose()
    assert [metrics.requests.labels("Watch", code)._value.get() for code in ("CANCELLED", "INTERNAL")] == [1, 0]


async def test_errors_after_the_caller_left_are_not_logged():
    """An error after the caller has left ends the call as cancelled and is not logged as an error."""

    class Left:
        async def abort(self, *_, **__):
            raise grpc.aio.InternalError

    with pytest.raises(asyncio.CancelledError):
        await _abort(InvalidRequestError(Violation("texts", "is empty")), "Predict", Left())


METHODS = ["InferenceService/Predict", "CheckpointService/PromoteCheckpoint", "AdaptationService/UploadDataset"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(method, raw, store):
    """Bytes that are not a message give INVALID_ARGUMENT, and the call is counted."""
    path = f"/twofold.v1.{method}"

    async def stream():
        yield raw

    async with running(store) as server:
        streams = method.endswith("UploadDataset")
        call = server.channel.stream_unary(path)(stream()) if streams else server.channel.unary_unary(path)(raw)
        code, error = await refusal(call)
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert "cannot be parsed" in error.message
        name = method.rpartition("/")[2]
        assert await server.metric("twofold_requests_total", method=name, code="INVALID_ARGUMENT") == 1


async def test_random_bytes_never_hurt(store):
    """A hundred messages of random bytes get a status each, none of them is INTERNAL, and the server keeps serving."""
    chance = random.Random(0)

    async with running(store) as server:
        method = server.channel.unary_unary("/twofold.v1.InferenceService/Predict")
        codes = [await method(chance.randbytes(chance.randint(0, 40))).code() for _ in range(100)]
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
        assert (await server.predict("rain")).predictions[0].label == "a_weather"


async def test_a_message_that_is_too_large_is_refused(store):
    """GRPC rejects a message that is too large and names the limit, and the server keeps serving."""
    async with running(store, max_message_bytes=1000) as server:
        code, error = await refusal(server.predict("x" * 2000))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1000" in error.message
        assert (await server.inference.GetModel(pb.GetModelRequest())).checkpoint_id == "a"

"""ModelInfer over a real port, called with our own stubs."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from unittest import mock

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_checkpoints
from support.running_server import gated, refusal, running
from support.tensors import TEXTS, ask, read
from twofold.open_inference import open_inference_pb2 as pb
from twofold.open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from twofold_server.api.wire.bytes_tensor import write_strings
from twofold_server.api.wire.open_inference import read_infer
from twofold_server.config.settings import LimitSettings
from twofold_server.errors import InvalidRequestError, UnknownNameError
from twofold_server.inference.engine import Engine, EngineState

FORMS = [
    pytest.param({}, id="raw"),
    pytest.param({"shape": [len(TEXTS), 1]}, id="raw with a second dimension"),
    pytest.param({"typed": True}, id="typed"),
]


@pytest.mark.parametrize("form", FORMS)
async def test_texts_in_and_answers_out(form, store):
    """All outputs are returned in order, with the checkpoint and the request's id, however the texts are encoded."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        response = await stub.ModelInfer(ask(*TEXTS, id="seven", **form))

        assert (response.model_name, response.model_version, response.id) == ("twofold", "a", "seven")
        assert [output.name for output in response.outputs] == ["label", "label_score", "entities", "checkpoint_id"]
        assert [output.datatype for output in response.outputs] == ["BYTES", "FP32", "BYTES", "BYTES"]
        actual = read(response)
        expected = [tiny_checkpoints.answer(text) for text in TEXTS]
        assert actual["label"] == [item.labels[0].label for item in expected]
        assert actual["label_score"] == pytest.approx([item.labels[0].score for item in expected], abs=1e-5)
        assert actual["checkpoint_id"] == ["a"] * len(TEXTS)
        for entities, answer in zip(map(json.loads, actual["entities"]), expected, strict=True):
            assert [(e["start"], e["end"], e["type"]) for e in entities] == [
                (e.start, e.end, e.type) for e in answer.entities
            ]
            assert [e["score"] for e in entities] == pytest.approx([e.score for e in answer.entities], abs=1e-5)


@pytest.mark.parametrize("outputs", [["entities", "label"], ["label_score"], ["checkpoint_id"], ["entities"]])
async def test_only_requested_outputs_are_returned(outputs, store):
    """Outputs are returned in the requested order, without others, and with the same values."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        everything = read(await stub.ModelInfer(ask(*TEXTS)))
        actual = read(await stub.ModelInfer(ask(*TEXTS, outputs=[{"name": name} for name in outputs])))
        assert list(actual) == outputs
        assert actual == {name: everything[name] for name in outputs}


@pytest.mark.parametrize(("unit", "start"), [("code_point", 2), ("utf16", 3), ("utf8", 5)])
async def test_offsets_in_the_caller_s_unit(unit, start, store):
    """Entity offsets are in the caller's unit."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        actual = read(await stub.ModelInfer(ask("😀 oslo", parameters={"offset_unit": {"string_param": unit}})))
        [entity] = json.loads(actual["entities"][0])
        assert (entity["start"], entity["end"]) == (start, start + 4)


async def test_unknown_parameters_are_ignored(store):
    """A priority and unknown parameters are ignored."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        parameters = {"priority": {"uint64_param": 1}, "timeout": {"int64_param": 0}, "gateway": {"string_param": "x"}}
        request = ask("rain", parameters=parameters)
        request.inputs[0].parameters["content_type"].string_param = "str"
        assert read(await stub.ModelInfer(request))["label"] == ["a_weather"]


def tensor(**fields):
    """Return the parts of a request with an input."""
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], **fields}]}


RAW = write_strings([b"rain"])
WRONG = [
    ({"inputs": [], "raw_input_contents": []}, "inputs", "is empty; send one tensor"),
    (tensor(name="texts"), "inputs[0].name", "unknown input 'texts'; use \"text\""),
    (tensor(datatype="FP32"), "inputs[0].datatype", "invalid type 'FP32'; use \"BYTES\""),
    (tensor(shape=[]), "inputs[0].shape", "[] is not a list of texts"),
    (tensor(shape=[1, 2]), "inputs[0].shape", "[1, 2] is not a list of texts; use [n] or [n, 1]"),
    (tensor(shape=[1] * 1000), "inputs[0].shape", "and more is not a list of texts"),
    (tensor(shape=[-1]), "inputs[0].shape", "[-1] is negative"),
    (tensor(shape=[-(2**63), 1]), "inputs[0].shape", "is negative"),
    (tensor(shape=[0]), "inputs[0].shape", "[0] is empty; send at least one text"),
    (tensor(shape=[2**63 - 1]), "inputs[0].shape", "send at most 4 texts"),
    (tensor(shape=[2**32, 2**32]), "inputs[0].shape", "is not a list of texts"),
    (tensor(shape=[5]), "inputs[0].shape", "[5] is too long; send at most 4 texts"),
    (tensor(shape=[2]), "raw_input_contents[0]", "ends after 1 elements, but the shape says 2"),
    ({"inputs": ask().inputs[:] * 2, "raw_input_contents": [RAW] * 2}, "inputs[1]", "is a second"),
    ({"raw_input_contents": [RAW] * 2}, "raw_input_contents", "has 2 entries, but inputs has 1"),
    (tensor(contents={"bytes_contents": [b"a"]}), "inputs[0].contents", "is set in addition to raw_input_contents"),
    ({"raw_input_contents": [b"\x09\0\0\0rain"]}, "raw_input_contents[0][0]", "declares 9 bytes, but only 4 follow"),
    ({"raw_input_contents": [RAW + b"x"]}, "raw_input_contents[0]", "has 1 more bytes"),
    ({"raw_input_contents": [b"\x02\0\0\0a\xff"]}, "raw_input_contents[0][0]", "is not UTF-8: byte 0xff at 1"),
    ({"raw_input_contents": [b"\x03\0\0\0\xed\xa0\x80"]}, "raw_input_contents[0][0]", "is not UTF-8: byte 0xed at 0"),
    (
        {"raw_input_contents": [write_strings([b"x" * 31])]},
        "raw_input_contents[0][0]",
        "has 31 characters; the maximum is 30",
    ),
    ({"raw_input_contents": []}, "inputs[0].contents.bytes_contents", "has 0 elements, but the shape says 1"),
    (
        {"raw_input_contents": [], **tensor(contents={"bytes_contents": [b"\xff"]})},
        "inputs[0].contents.bytes_contents[0]",
        "is not UTF-8",
    ),
    (
        {"raw_input_contents": [], **tensor(contents={"int_contents": [1]})},
        "inputs[0].contents.bytes_contents",
        "has 0 elements",
    ),
    ({"outputs": [{"name": "labels"}]}, "outputs[0].name", "unknown output 'labels'; use one of label, label_score"),
    ({"outputs": [{"name": "label"}] * 2}, "outputs[1].name", "'label' is requested twice"),
    (
        {"outputs": [{"name": "label", "parameters": {"classification": {"int64_param": 3}}}]},
        "outputs[0].parameters['classification']",
        'request the outputs "label" and "label_score"',
    ),
    (
        tensor(parameters={"shared_memory_region": {"string_param": "x"}}),
        "inputs[0].parameters['shared_memory_region']",
        "shared memory is not supported; use raw contents",
    ),
    ({"parameters": {"sequence_id": {"int64_param": 3}}}, "parameters['sequence_id']", "sequences are not supported"),
    (
        {"parameters": {"timeout": {"int64_param": -3}}},
        "parameters['timeout']",
        "invalid time '-3'; use whole microsec",
    ),
    ({"parameters": {"timeout": {"bool_param": True}}}, "parameters['timeout']", "invalid time 'True'"),
    (
        {"parameters": {"offset_unit": {"string_param": "x"}}},
        "parameters['offset_unit']",
        "unknown unit 'x'; use one of",
    ),
]


async def test_invalid_fields_are_named(store):
    """INVALID_ARGUMENT names the field, its value and the fix, and the server keeps serving."""
    async with running(store, max_texts=4, max_characters=30) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        for fields, field, says in WRONG:
            code, error = await refusal(stub.ModelInfer(ask(**fields)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT, fields
            [violation] = error.violations
            assert (violation.field, says in violation.description) == (field, True), violation
        assert read(await stub.ModelInfer(ask("rain")))["label"] == ["a_weather"]
        counted = await server.metric("twofold_requests_total", method="ModelInfer", code="INVALID_ARGUMENT")
        assert counted == len(WRONG)


ELEMENTS = st.lists(st.binary(max_size=6), max_size=3)
VALUES = st.one_of(
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(pb.InferParameter, string_param=st.sampled_from(["utf8", "x", ""])),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.just(pb.InferParameter()),
)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["text", "texts", ""]),
    datatype=st.sampled_from(["BYTES", "FP32", ""]),
    shape=st.lists(st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)), max_size=3),
    contents=st.one_of(st.none(), st.builds(pb.InferTensorContents, bytes_contents=ELEMENTS)),
)
PARTS = {
    "model_name": st.sampled_from(["x", ""]),
    "inputs": st.lists(INPUTS, max_size=2),
    "raw_input_contents": st.lists(st.one_of(st.binary(max_size=20), st.builds(write_strings, ELEMENTS)), max_size=2),
    "parameters": st.dictionaries(st.sampled_from(["timeout", "offset_unit", "priority", "sequence_id"]), VALUES),
}


@settings(deadline=None)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=4), st.booleans(), st.fixed_dictionaries({}, optional=PARTS))
def test_any_request_is_read_or_refused(texts, typed, parts):
    """Any request is either read correctly or rejected with the name of a field."""
    request = ask(*texts, typed=typed, **parts)
    try:
        call = read_infer(request, LimitSettings())
    except InvalidRequestError as error:
        named = [violation.field for violation in error.violations]
        assert parts
        assert all(named)
    except UnknownNameError:
        assert "model_name" in parts
    else:
        assert "model_name" not in parts
        assert len(call.texts) == request.inputs[0].shape[0]
        assert call.texts == texts or parts.keys() & {"inputs", "raw_input_contents"}
        assert call.timeout > 0


async def test_random_bytes_never_hurt(store):
    """A hundred messages of random bytes get a status each, and none of them is INTERNAL."""
    chance = random.Random(0)

    async with running(store) as server:
        method = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        codes = {await method(chance.randbytes(chance.randint(0, 40))).code() for _ in range(100)}
        assert codes <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
        assert len(codes) == 2


UNKNOWN = [
    ("ModelInfer", ask(model_name="other"), "model_name: unknown model 'other'; use 'twofold'"),
    ("ModelInfer", ask(model_version="b"), "model_version: 'b' is not live; the live checkpoint is 'a'"),
    ("ModelMetadata", pb.ModelMetadataRequest(name="other"), "name: unknown model 'other'"),
    ("ModelMetadata", pb.ModelMetadataRequest(name="twofold", version="b"), "version: 'b' is not live"),
    ("ModelConfig", pb.ModelConfigRequest(), "name: unknown model ''"),
    ("ModelConfig", pb.ModelConfigRequest(name="twofold", version="b"), "version: 'b' is not live"),
    ("ModelStatistics", pb.ModelStatisticsRequest(name="x"), "name: unknown model 'x'"),
    ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="x"), "unknown repository 'x'; leave it empty"),
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="x"), "there is no checkpoint 'x' in the store"),
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="../a"), "is not a checkpoint id"),
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="candidate"), "no checkpoint has the alias"),
    (
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(repository_name="x", model_name="b"),
        "unknown repository 'x'",
    ),
]


async def test_unknown_names_are_not_found(store):
    """NOT_FOUND quotes the name and lists the existing ones."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        for method, request, says in UNKNOWN:
            code, error = await refusal(getattr(stub, method)(request))
            assert code is grpc.StatusCode.NOT_FOUND, request
            assert says in error.message
        assert (await server.predict("rain")).checkpoint_id == "a"


async def test_a_replaced_version_is_not_found(store):
    """A request for one checkpoint is never answered by another one, even if a swap follows the request."""
    entered, leave = threading.Event(), threading.Event()
    run = Engine.run

    def held(engine, *arguments):
        if engine.id == "a" and engine.state is EngineState.READY:
            entered.set()
            assert leave.wait(20)
        return run(engine, *arguments)

    with mock.patch.object(Engine, "run", held):
        async with running(store) as server:
            try:
                stub = GRPCInferenceServiceStub(server.channel)
                first = asyncio.ensure_future(server.predict("rain"))
                assert await asyncio.to_thread(entered.wait, 10)
                pinned, free = (asyncio.ensure_future(stub.ModelInfer(ask(model_version=name))) for name in ("a", ""))
                await server.until("twofold_queue_tokens", 6)
                await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="b"))
                leave.set()
                assert (await first).checkpoint_id == "a"
                assert (await free).model_version == "b"
                code, error = await refusal(pinned)
                assert code is grpc.StatusCode.NOT_FOUND
                assert "model_version: 'a' is not live; the live checkpoint is 'b'" in error.message
            finally:
                leave.set()


async def test_a_text_that_waits_past_its_timeout_is_not_answered(store):
    """The timeout parameter is in microseconds, and causes DEADLINE_EXCEEDED even without a deadline of the call."""
    async with running(store, passes=1) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        with gated() as gate:
            first = asyncio.ensure_future(server.predict("rain"))
            await gate.wait_until_busy()
            late = asyncio.ensure_future(stub.ModelInfer(ask(parameters={"timeout": {"int64_param": 1}})))
            patient = asyncio.ensure_future(stub.ModelInfer(ask(parameters={"timeout": {"uint64_param": 60_000_000}})))
            await server.until("twofold_queue_tokens", 6)
            gate.open.set()
            code, error = await refusal(late)
            assert (code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "EXPIRED")
            assert read(await patient)["label"] == ["a_weather"]
            await first


async def test_load_is_shed_as_elsewhere(store):
    """RESOURCE_EXHAUSTED comes before the request is read, with a retry delay."""
    async with running(store, max_requests=1) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        with gated() as gate:
            first = asyncio.ensure_future(stub.ModelInfer(ask()))
            await gate.wait_until_busy()
            for request in (ask(), pb.ModelInferRequest(model_name="x")):
                code, error = await refusal(stub.ModelInfer(request))
                assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
                assert error.retry_after > 0
            gate.open.set()
            await first

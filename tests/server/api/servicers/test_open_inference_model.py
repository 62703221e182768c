"""Model and repository metadata of the Open Inference Protocol, over a real port."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support import tiny_checkpoints
from support.running_server import config_of, read_metrics, refusal, running
from support.tensors import TEXTS, ask, read
from twofold.open_inference import open_inference_pb2 as pb
from twofold.open_inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from twofold.v1 import checkpoints_pb2
from twofold_checkpoint.store import Store
from twofold_server.api.servicers.open_inference import UNSUPPORTED
from twofold_server.app import serve


async def test_the_model_is_described(store):
    """Metadata and configuration have the same tensors, with the limits of this server."""
    async with running(store, max_texts=7) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        described = await stub.ServerMetadata(pb.ServerMetadataRequest())
        assert described.name == "twofold"
        assert set(described.extensions) == {"model_configuration", "model_repository", "statistics"}
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="twofold", version="a"))
        assert list(metadata.versions) == ["a"]
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="twofold"))).config
        assert config.max_batch_size == 7
        assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
        names = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}
        for described, configured in ((metadata.inputs, config.input), (metadata.outputs, config.output)):
            assert [(item.name, names[item.datatype]) for item in described] == [
                (
                    item.name,
                    type(item).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[item.data_type].name,
                )
                for item in configured
            ]
            assert all(list(item.shape) == [-1] for item in described)
            assert not any(item.dims for item in configured)
        assert [output.name for output in metadata.outputs] == list(read(await stub.ModelInfer(ask())))


async def readiness(stub, name="twofold", version=""):
    """Return whether the server and a model are ready."""
    server = await stub.ServerReady(pb.ServerReadyRequest())
    model = await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))
    return server.ready, model.ready


async def test_only_the_live_version_is_ready(store):
    """The model and its live version are ready; another name or version is not, without an error."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert await readiness(stub) == (True, True)
        assert await readiness(stub, version="a") == (True, True)
        assert await readiness(stub, version="b") == (True, False)
        assert await readiness(stub, name="other") == (True, False)


async def test_without_a_checkpoint_nothing_is_ready(tmp_path):
    """Without a checkpoint the server is live but not ready, and inference is UNAVAILABLE until one is loaded."""
    empty = Store(tmp_path / "empty").create()

    async with running(empty) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert await readiness(stub) == (False, False)
        assert not (await stub.ModelMetadata(pb.ModelMetadataRequest(name="twofold"))).versions
        assert not (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
        for version in ("", "a"):
            code, _ = await refusal(stub.ModelInfer(ask(model_version=version)))
            assert code is grpc.StatusCode.UNAVAILABLE
        tiny_checkpoints.publish(empty, tiny_checkpoints.Recipe(tag="a"))
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="a"))
        assert await readiness(stub, version="a") == (True, True)


async def test_a_stopping_server_is_not_ready(store):
    """Readiness ends when health is NOT_SERVING, while calls are still answered; the server stays live until its end."""
    going = AsyncExitStack()
    server = await going.enter_async_context(serve(config_of(store, drain_delay=0.5)))
    async with grpc.aio.insecure_channel(server.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stub = GRPCInferenceServiceStub(channel)
        assert await readiness(stub) == (True, True)
        end = asyncio.create_task(going.aclose())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await readiness(stub) == (False, False)
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert read(await stub.ModelInfer(ask()))["label"] == ["a_weather"]
        await end


async def test_the_store_is_the_repository(store):
    """The index lists checkpoints, newest first, with the reason why they are not ready; loading one promotes it."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)

        async def index(**fields):
            models = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(**fields))).models
            assert {model.name for model in models} == {"twofold"}
            return [(model.version, model.state) for model in models], [model.reason for model in models]

        states, reasons = await index()
        assert states == [("b", "UNAVAILABLE"), ("a", "READY")]
        assert "RepositoryModelLoad" in reasons[0]
        assert not reasons[1]
        assert (await index(ready=True))[0] == [("a", "READY")]

        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="b"))
        states, reasons = await index()
        assert states == [("b", "READY"), ("a", "UNAVAILABLE")]
        assert "in the store (previous)" in reasons[1]
        assert read(await stub.ModelInfer(ask()))["label"] == ["b_weather"]
        request = checkpoints_pb2.GetCheckpointRequest(checkpoint="b")
        assert set((await server.checkpoints.GetCheckpoint(request)).checkpoint.aliases) == {"current", "approved"}

        version = {"version": {"string_param": "previous"}}
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="twofold", parameters=version))
        assert read(await stub.ModelInfer(ask()))["label"] == ["a_weather"]


WRONG_LOADS = [
    ({}, "model_name", "'' is not a checkpoint; use an id or alias"),
    ({"model_name": "twofold"}, "model_name", "'twofold' is not a checkpoint"),
    ({"model_name": "b", "parameters": {"config": {"string_param": "{}"}}}, "parameters['config']", "is not supported"),
    ({"model_name": "b", "parameters": {"file:1/x": {"bytes_param": b""}}}, "parameters['file:1/x']", "leave it out"),
    ({"model_name": "b", "parameters": {"version": {"string_param": "b"}}}, "model_name", "'b' is set in addition to"),
    (
        {"model_name": "b", "parameters": {"version": {"int64_param": 1}}},
        "parameters['version']",
        "is empty or not a string",
    ),
]


async def test_a_wrong_load_is_refused(store):
    """INVALID_ARGUMENT names the field, and the old checkpoint keeps serving."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        for fields, field, says in WRONG_LOADS:
            code, error = await refusal(stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(**fields)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert (error.violations[0].field, says in error.violations[0].description) == (field, True), error
        assert (await server.predict("rain")).checkpoint_id == "a"


async def test_a_broken_checkpoint_is_not_loaded(store):
    """FAILED_PRECONDITION names the fault, and the old checkpoint keeps serving."""
    tiny_checkpoints.publish_broken(store, "NaN weights")

    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        code, error = await refusal(stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="x")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert tiny_checkpoints.BROKEN["NaN weights"][2] in error.message
        assert await readiness(stub, version="a") == (True, True)


async def test_statistics_match_the_metrics(store):
    """The statistics count the calls of both protocols once, and a swap does not reset them."""
    async with running(store) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        await stub.ModelInfer(ask(*TEXTS))
        await server.predict("rain", "oslo")
        await refusal(stub.ModelInfer(ask(model_name="other")))
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="b"))
        [actual] = (await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
        values = await asyncio.to_thread(read_metrics, server.metrics_url)

        assert (actual.name, actual.version) == ("twofold", "b")
        assert actual.inference_count == len(TEXTS) + 2
        stats = actual.inference_stats
        assert (stats.success.count, stats.fail.count) == (2, 1)
        stages = {"queue": "queue", "compute_input": "tokenize", "compute_infer": "infer", "compute_output": "decode"}
        for name, stage in stages.items():
            spent, key = getattr(stats, name), (("stage", stage),)
            assert spent.count == values["twofold_stage_seconds_count", key] > 0
            assert spent.ns == pytest.approx(values["twofold_stage_seconds_sum", key] * 1e9, abs=1)
        assert stats.queue.count == actual.inference_count
        assert actual.execution_count == stats.compute_infer.count
        assert stats.success.ns > stats.compute_infer.ns
        assert values["twofold_texts_total", (("method", "ModelInfer"),)] == len(TEXTS)
        assert values["twofold_requests_total", (("code", "NOT_FOUND"), ("method", "ModelInfer"))] == 1
        assert values["twofold_request_seconds_count", (("method", "ModelInfer"),)] == 2


async def test_unserved_methods_name_an_alternative(store):
    """Triton's other methods are UNIMPLEMENTED with advice, and counted; gRPC rejects unknown ones."""
    async with running(store) as server:
        for method, instead in UNSUPPORTED.items():
            path = f"/inference.GRPCInferenceService/{method}"
            streams = method == "ModelStreamInfer"
            # Nothing is written to the stream: what is sent while it is refused hides the refusal from grpcio's client.
            call = server.channel.stream_stream(path)().read() if streams else server.channel.unary_unary(path)(b"")
            code, error = await refusal(call)
            assert (code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
            assert error.message == f"{method} is not supported; {instead}"
        code, _ = await refusal(server.channel.unary_unary("/inference.GRPCInferenceService/Else")(b""))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        values = await asyncio.to_thread(read_metrics, server.metrics_url)
        counted = {
            dict(labels)["method"]: value
            for (name, labels), value in values.items()
            if name == "twofold_requests_total" and ("code", "UNIMPLEMENTED") in labels
        }
        assert counted == dict.fromkeys(UNSUPPORTED, 1)


SYMBOLS = {
    "inference.GRPCInferenceService": {"inference/open_inference.proto", "inference/model_config.proto"},
    "inference.ModelConfig": {"inference/model_config.proto"},
    "twofold.v1.InferenceService": {"twofold/v1/inference.proto"},
}


async def test_reflection_describes_both_protocols(store):
    """Reflection finds the files of all services by symbol and name, and rejects unknown ones."""
    async with running(store) as server:

        async def files(**fields):
            stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
            answer = await stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**fields)])).read()
            if answer.HasField("error_response"):
                return answer.error_response.error_code
            return {
                FileDescriptorProto.FromString(item).name
                for item in answer.file_descriptor_response.file_descriptor_proto
            }

        for symbol, names in SYMBOLS.items():
            assert await files(file_containing_symbol=symbol) == names
        for name in ("inference/model_config.proto", "twofold/v1/inference.proto"):
            assert await files(file_by_filename=name) == {name}
        for fields in ({"file_containing_symbol": "inference.No"}, {"file_by_filename": "no.proto"}):
            assert await files(**fields) == grpc.StatusCode.NOT_FOUND.value[0]

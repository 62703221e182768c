"""Health and reflection over a real port."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.running_server import config_of, refusal, running
from twofold.v1 import inference_pb2 as pb
from twofold.v1.inference_pb2_grpc import InferenceServiceStub
from twofold_server.app import SERVICES, serve

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_every_service_is_healthy_once_a_checkpoint_answers(service, store):
    """The server and each service are SERVING once a checkpoint is live."""
    async with running(store) as server:
        assert await server.is_serving(service)


async def test_an_unknown_service_is_not_found(store):
    """The health of an unknown service is NOT_FOUND."""
    async with running(store) as server:
        code, _ = await refusal(server.health.Check(health_pb2.HealthCheckRequest(service="nobody")))
        assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
async def test_unreadable_requests_are_invalid_arguments(method, store, caplog):
    """Invalid bytes are INVALID_ARGUMENT with a reason, and no error is logged."""
    async with running(store) as server:
        call = server.channel.unary_stream(f"/grpc.health.v1.Health/{method}")(b"\x0a\xff")
        code, error = await refusal(call.read())

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, [violation.field for violation in error.violations]) == ("INVALID_REQUEST", ["request"])
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_all_states_are_listed(store):
    """List returns each service, and the server under the empty name."""
    async with running(store) as server:
        statuses = (await server.health.List(health_pb2.HealthListRequest())).statuses
    assert {name: status.status for name, status in statuses.items()} == dict.fromkeys(("", *SERVICES), SERVING)


async def test_a_health_watch_ends_with_the_server(store):
    """Watch sends SERVING, then NOT_SERVING while calls are still answered, and then ends."""
    going = AsyncExitStack()
    server = await going.enter_async_context(serve(config_of(store, drain_delay=0.5, drain_timeout=30)))
    async with grpc.aio.insecure_channel(server.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        started_at = time.monotonic()
        end = asyncio.create_task(going.aclose())
        assert (await watch.read()).status == NOT_SERVING
        assert (await InferenceServiceStub(channel).Predict(pb.PredictRequest(texts=["rain"]))).predictions
        await end
        assert time.monotonic() - started_at < 10
        assert await watch.code() is not None


async def test_reflection_lists_all_services(store):
    """Reflection lists all services, for tools such as grpcurl."""
    async with running(store) as server:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        response = await stub.ServerReflectionInfo(iter([request])).read()
        assert {service.name for service in response.list_services_response.service} >= {
            *SERVICES,
            "grpc.health.v1.Health",
        }

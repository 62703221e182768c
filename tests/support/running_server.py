"""A real server on loopback in this process, and stubs to call it."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from twofold import status
from twofold.v1 import inference_pb2 as pb
from twofold.v1.checkpoints_pb2_grpc import CheckpointServiceStub
from twofold.v1.inference_pb2_grpc import InferenceServiceStub
from twofold_checkpoint.store import Store
from twofold_server.app import serve
from twofold_server.config.schema import build_config
from twofold_server.config.settings import Config
from twofold_server.inference.engine import Engine
from twofold_server.observability.tracing import Tracer


@dataclass(frozen=True)
class Running:
    """The stubs and addresses of a running server."""

    inference: InferenceServiceStub
    checkpoints: CheckpointServiceStub
    health: health_pb2_grpc.HealthStub
    channel: grpc.aio.Channel
    target: str
    metrics_url: str

    async def predict(self, *texts: str, patience: float = 30, **fields: Any) -> pb.PredictResponse:
        """Call Predict with a deadline of *patience* seconds."""
        return await self.inference.Predict(pb.PredictRequest(texts=texts, **fields), timeout=patience)

    async def is_serving(self, service: str = "") -> bool:
        """Return whether the health service reports SERVING."""
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def metric(self, name: str, **labels: str) -> float:
        """Return a value from the metrics port; 0 if it is missing."""
        return await read_metric(self.metrics_url, name, **labels)

    async def until(self, name: str, expected: float, **labels: str) -> None:
        """Wait until a metric has a value."""
        await until(self.metrics_url, name, expected, **labels)


async def until(url: str, name: str, expected: float, **labels: str) -> None:
    """Wait until a metric has a value; fail after five seconds."""
    for _ in range(250):
        if (value := await read_metric(url, name, **labels)) == expected:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} {labels} is {value} and not {expected}")


async def read_metric(url: str, name: str, **labels: str) -> float:
    """Return the value of a metric; 0 if it is missing."""
    return (await asyncio.to_thread(read_metrics, url)).get((name, tuple(sorted(labels.items()))), 0.0)


def read_metrics(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return all values by name and labels."""
    with urllib.request.urlopen(url, timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def config_of(store: Store, **settings: Any) -> Config:
    """Return a configuration of a server over a store, on free ports."""
    ours = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "trainer_niceness": 0}
    return build_config(**{"store": store.root, **ours, **settings})


@asynccontextmanager
async def running(store: Store, tracer: Tracer | None = None, **settings: Any) -> AsyncIterator[Running]:
    """Serve a store until the block ends."""
    async with (
        serve(config_of(store, **settings), tracer) as server,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        yield Running(
            InferenceServiceStub(channel),
            CheckpointServiceStub(channel),
            health_pb2_grpc.HealthStub(channel),
            channel,
            server.target,
            server.metrics_url,
        )


class Gate:
    """Blocks forward passes until it is opened; *entered* is set once a pass waits."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.passes: list[tuple[str, int]] = []

    async def wait_until_busy(self) -> None:
        """Wait until a pass is blocked."""
        assert await asyncio.to_thread(self.entered.wait, 10)


@contextmanager
def gated() -> Iterator[Gate]:
    """Put a gate in front of every engine from now on."""
    gate, run = Gate(), Engine.run

    def held(engine: Engine, ids: Any, mask: Any, outputs: Any) -> Any:
        gate.entered.set()
        assert gate.open.wait(20)
        gate.passes.append((engine.id, len(ids)))
        return run(engine, ids, mask, outputs)

    with mock.patch.object(Engine, "run", held):
        try:
            yield gate
        finally:
            gate.open.set()


async def refusal(call: Any) -> tuple[grpc.StatusCode, status.Status]:
    """Await a call that must fail, and return its code and details."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata() or ()).get(status.METADATA_KEY)
        message = status.decode_status(details) if details else status.Status(code=0, message=error.details() or "")
        return error.code(), message
    raise AssertionError(f"the call was answered: {answer}")

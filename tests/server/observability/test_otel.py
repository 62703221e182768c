"""The export of traces: to an OTLP collector, available or not, and only if configured."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from support.running_server import config_of, running
from twofold_server.config.settings import TracingSettings


class GarbageCollector(TraceServiceServicer):
    """A collector that stores what it receives."""

    def __init__(self) -> None:
        self.requests = []
        self.metadata = []
        self.server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self.server)
        self.endpoint = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def Export(self, request, context):  # noqa: N802 -- as the service calls it.
        """Receive spans."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return ExportTraceServiceResponse()

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None).wait()


async def predictions(store, times, **settings):
    """Serve, and answer a number of calls one after another."""
    async with running(store, trace_share=1.0, **settings) as server:
        for _ in range(times):
            assert (await server.predict("rain")).predictions[0].label == "a_weather"


async def test_a_collector_receives_what_was_sent(store, monkeypatch):
    """The collector gets every span over OTLP, with the resource and the headers of the OTEL_ variables."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,service.name=intents")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    with GarbageCollector() as collector:
        await predictions(store, 3, trace_endpoint=collector.endpoint)

    resources = [span for request in collector.requests for span in request.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    names = [span.name for span in spans]
    assert {name: names.count(name) for name in set(names)} == {
        "twofold.v1.InferenceService/Predict": 3,
        "tokenize": 3,
        "queue": 3,
        "infer": 3,
        "decode": 3,
        "batch": 3,
    }
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span.name == "infer":
            assert by_id[span.parent_span_id].name == "twofold.v1.InferenceService/Predict"
            assert [by_id[link.span_id].name for link in span.links] == ["batch"]
    message = {attribute.key: attribute.value.string_value for attribute in resources[0].resource.attributes}
    assert (message["service.name"], message["deployment.environment.name"]) == ("intents", "staging")
    assert all(item["x-tenant"] == "blue" for item in collector.metadata)


async def test_a_collector_that_is_down_does_no_harm(store, monkeypatch):
    """Without a collector at the endpoint, and with more spans than the buffer holds, calls are answered and the server stops."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")

    await predictions(store, 20, trace_endpoint="http://127.0.0.1:1")


async def test_a_collector_that_never_answers_does_no_harm(store, monkeypatch):
    """If the collector never answers, calls are answered and the server stops."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await predictions(store, 20, trace_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")


REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""
OPEN = """
from twofold_server.app import make_tracer
from twofold_server.config.settings import TracingSettings
"""


def python(code):
    """Run code in a separate process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_without_the_extra():
    """Without OpenTelemetry the server works, and tracing gives an error that says what to install."""
    ended = python(
        f"{REFUSE}{OPEN}assert make_tracer(TracingSettings()) is None\nmake_tracer(TracingSettings(endpoint='http://x:1'))"
    )

    assert "FailedPreconditionError: trace-endpoint needs OpenTelemetry; install twofold-service[otel]" in ended.stderr


def test_nothing_is_loaded_unless_it_is_wanted():
    """Without trace-endpoint the server imports nothing of OpenTelemetry."""
    ended = python(f"{OPEN}import sys\nmake_tracer(TracingSettings())\nprint('opentelemetry' in sys.modules)")

    assert ended.stdout == "False\n", ended.stderr


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://collector:4317", "http://", ""])
def test_an_endpoint_that_cannot_be(endpoint):
    """An invalid endpoint URL is rejected with a fix."""
    with pytest.raises(ValueError, match=r"trace-endpoint .* must be http://HOST:PORT, or https:// for TLS"):
        TracingSettings(endpoint=endpoint)


def test_a_password_in_the_endpoint_is_hidden(store):
    """Neither the settings' repr nor an error shows the password of the endpoint."""
    assert "hunter2" not in repr(config_of(store, trace_endpoint="https://me:hunter2@collector:4317"))
    with pytest.raises(ValueError, match="trace-endpoint") as refused:
        TracingSettings(endpoint="ftp://me:hunter2@collector")
    assert "hunter2" not in str(refused.value)

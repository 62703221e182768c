"""The client in a trace: where its caller has one, the server hears of it."""

import asyncio
import subprocess
import sys

from opentelemetry.sdk.trace import TracerProvider
from twofold import AsyncClient, Client
from twofold._channel import Endpoint
from twofold.testing import FakeServer

TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("caller")


def test_the_current_span_goes_with_a_call():
    """The metadata of a call names the span that is current when it is made, after the token; without one, nothing."""
    endpoint = Endpoint(target="127.0.0.1:1", token="secret")
    with TRACER.start_as_current_span("checkout") as span:
        place = span.get_span_context()
        inside = endpoint.metadata

    assert inside == (
        ("authorization", "Bearer secret"),
        ("traceparent", f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"),
    )
    assert endpoint.metadata == (("authorization", "Bearer secret"),)


def test_calls_are_answered_with_it():
    """Both clients call as ever from within a span: one response, a stream of them, a stream of requests."""

    async def main(target):
        async with AsyncClient(target) as client:
            await client.predict("Ada")
            return [one async for one in client.predict_stream(["Ada", "Bob"])]

    with FakeServer() as server, TRACER.start_as_current_span("checkout"):
        with Client(server.target) as client:
            client.predict("Ada")
            assert len(list(client.predict_stream(["Ada", "Bob"]))) == 2
            assert list(client.jobs()) == []
        assert len(asyncio.run(main(server.target))) == 2


def test_nothing_is_loaded_for_it():
    """Where the application has not loaded OpenTelemetry, a call does not."""
    code = (
        "import sys; from twofold._channel import Endpoint;"
        "print(Endpoint(target='127.0.0.1:1').metadata, 'opentelemetry' in sys.modules)"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert ended.stdout == "() False\n"

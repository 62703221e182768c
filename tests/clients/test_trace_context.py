"""The client sends the trace context of its caller."""

import subprocess
import sys

from opentelemetry.sdk.trace import TracerProvider
from twofold import AsyncClient, Client
from twofold._channel import Endpoint
from twofold.testing import FakeServer

TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("caller")


def test_the_current_span_is_sent():
    """The metadata of a call contains the token and the span that is current when the call is made."""
    endpoint = Endpoint(target="127.0.0.1:1", token="secret")
    with TRACER.start_as_current_span("checkout") as span:
        context = span.get_span_context()
        metadata = endpoint.metadata

    assert metadata == (
        ("authorization", "Bearer secret"),
        ("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"),
    )
    assert endpoint.metadata == (("authorization", "Bearer secret"),)


async def test_calls_within_a_span():
    """Both clients work within a span: unary calls and streams."""
    with FakeServer() as server, TRACER.start_as_current_span("checkout"):
        with Client(server.target) as client:
            client.predict("Ada")
            assert len(list(client.predict_stream(["Ada", "Bob"]))) == 2
            assert list(client.jobs()) == []
        async with AsyncClient(server.target) as client:
            await client.predict("Ada")
            assert len([prediction async for prediction in client.predict_stream(["Ada", "Bob"])]) == 2


def test_opentelemetry_is_not_imported():
    """If the application has not imported OpenTelemetry, a call does not import it."""
    code = (
        "import sys; from twofold._channel import Endpoint;"
        "print(Endpoint(target='127.0.0.1:1').metadata, 'opentelemetry' in sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout == "() False\n"

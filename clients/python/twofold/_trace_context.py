"""Propagate the caller's trace context to the server."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """
    Return the trace context of the current OpenTelemetry span as metadata, or nothing if there is none.

    OpenTelemetry is never imported here: only an application that has imported it can have a span. The application's
    propagators define the format, by default W3C Trace Context.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate  # noqa: PLC0415 -- not a dependency of the client

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())

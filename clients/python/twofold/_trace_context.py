"""Where a caller stands in a trace, for the server to go on from there."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """
    Return the metadata that names the current span of OpenTelemetry, or nothing if there is none.

    Only an application that has loaded OpenTelemetry can have one, so nothing is loaded here. How it is written is for the
    application's propagators to say: W3C Trace Context, unless they were changed.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate  # noqa: PLC0415 -- no dependency of ours.

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())

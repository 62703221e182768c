"""OpenTelemetry spans, exported by a background thread. The only module that imports OpenTelemetry; needs the extra `otel`.

Spans are created after the work has ended, with explicit times: the code that serves a call only reads the clock.
ADR 30 defines parents and links.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from twofold_server import VERSION
from twofold_server.observability.request_context import CallSpan, CallStage
from twofold_server.observability.tracing import JOB_SPAN, FinishedSpan

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 5.0
"""Seconds to export the last spans at shutdown."""
_MAX_TRACEPARENT_LENGTH = 512
# The codes that are server errors by OpenTelemetry's conventions for gRPC servers.
_SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class OtelTracer:
    """Creates spans of calls, batches and jobs, as docs/tracing.md defines them. Spans never contain user text."""

    def __init__(self, exporter: SpanExporter, share: float = 1.0) -> None:
        self._exporter = exporter
        resource = Resource.create({"service.name": "twofold", "service.version": VERSION})
        self._provider = TracerProvider(
            sampler=ParentBased(_RootSampler(share)),
            resource=resource.merge(OTELResourceDetector().detect()),  # Environment variables win.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("twofold_server", VERSION)

    @classmethod
    def to(cls, endpoint: str, share: float) -> OtelTracer:
        """Export spans to a collector, which may be down. OTEL_EXPORTER_OTLP_* variables set everything else."""
        return cls(OTLPSpanExporter(endpoint=endpoint), share)

    def start_call(self, procedure: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan:
        """Start the span of a call, as a child of the span in its metadata, if there is one."""
        method = procedure.removeprefix("/")
        traceparent = next((value for key, value in metadata if key == "traceparent" and isinstance(value, str)), "")
        span = self._tracer.start_span(
            method,
            _parent_context(traceparent),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
        )
        context = span.get_span_context()
        return CallSpan(span, f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)

    def end_call(self, call: CallSpan, code: str) -> None:
        """End the span with the name of a gRPC status code."""
        if call.is_sampled:
            call.span.set_attribute("rpc.response.status_code", code)
            call.span.set_attributes({f"twofold.{kind}.id": value for kind, value in call.attributes.items()})
            if code in _SERVER_ERRORS:
                call.span.set_attribute("error.type", code)
                call.span.set_status(Status(StatusCode.ERROR))
        call.span.end()

    def add_stages(self, call: CallSpan, stages: Iterable[CallStage]) -> None:
        """Create a child span for each stage of a call."""
        parent, clock = trace.set_span_in_context(call.span, Context()), _Clock()
        for stage in stages:
            links = [Link(stage.batch_span)] if stage.batch_span else None
            span = self._tracer.start_span(stage.name, parent, links=links, start_time=clock.to_ns(stage.started_at))
            span.end(clock.to_ns(stage.started_at + stage.seconds))

    def add_batch(
        self, calls: Sequence[CallSpan], started_at: float, *, error: str = "", **attributes: str | int
    ) -> SpanContext:
        """Create the span of a batch that just ended, linked to its calls, and return the context for CallStage.batch_span."""
        clock = _Clock()
        span = self._tracer.start_span(
            "batch",
            Context(),
            attributes={f"twofold.batch.{name}": value for name, value in attributes.items()},
            links=[Link(call.span.get_span_context()) for call in calls],
            start_time=clock.to_ns(started_at),
        )
        _set_error(span, error)
        span.end(clock.now_ns)
        return span.get_span_context()

    def add_finished(self, span: FinishedSpan) -> None:
        """Record a span that has ended, with its children, as a trace of its own."""
        self._record(span, Context())

    def _record(self, span: FinishedSpan, parent: Context) -> None:
        linked = trace.get_current_span(_parent_context(span.linked_traceparent)).get_span_context()
        recorded = self._tracer.start_span(
            span.name,
            parent,
            attributes=dict(span.attributes),
            links=[Link(linked)] if linked.is_valid else None,
            start_time=_to_ns(span.started_at),
        )
        for child in span.children:
            self._record(child, trace.set_span_in_context(recorded, Context()))
        _set_error(recorded, span.error)
        recorded.end(_to_ns(span.ended_at))

    def close(self) -> None:
        """Export the remaining spans. Blocks for a few seconds at most."""
        # The SDK blocks for 30 s if the collector is down, so a daemon thread waits for it.
        export = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        export.start()
        export.join(_SHUTDOWN_SECONDS)
        if export.is_alive():
            log.warning("the trace collector did not accept the last spans")
            self._exporter.shutdown()
            export.join(_SHUTDOWN_SECONDS)


def _parent_context(traceparent: str) -> Context:
    """Return the context of a W3C traceparent; empty if it is invalid.

    tracestate and baggage are ignored: the server makes no calls that would forward them, and
    OpenTelemetry would log malformed values.
    """
    if len(traceparent) > _MAX_TRACEPARENT_LENGTH:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


class _RootSampler(Sampler):
    """Samples root spans: a share of the calls, the batches of sampled calls, and all jobs."""

    def __init__(self, share: float) -> None:
        self._by_share = TraceIdRatioBased(share)

    def should_sample(  # noqa: PLR0917 -- as the SDK calls it.
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Return whether to record a span."""
        if name == JOB_SPAN or any(link.context.trace_flags.sampled for link in links or ()):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return self._by_share.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Return the sampler's description."""
        return f"RootSampler{{{self._by_share.get_description()}}}"


class _Clock:
    """The current time on both clocks, to convert monotonic times to wall-clock times."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()
        self._monotonic = time.monotonic()

    def to_ns(self, seconds: float) -> int:
        """Return a monotonic time as nanoseconds since 1970."""
        return self.now_ns - int((self._monotonic - seconds) * 1e9)


def _set_error(span: Any, error: str) -> None:
    """Mark a span as failed if *error* is not empty."""
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))


def _to_ns(when: datetime) -> int:
    return int(when.timestamp() * 1e9)

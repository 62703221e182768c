"""Spans by OpenTelemetry, sent to a collector by a thread of its own. The only module that knows it; needs the extra `otel`.

Spans are created after the work has ended, with explicit times: the code that serves a call only reads the clock.
See ADR 30 for what is a parent and what is a link.
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
from twofold_server.observability.request_context import Call, Stage
from twofold_server.observability.tracing import JOB_SPAN, FinishedSpan

log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds for the last spans on the way down."""
_LONGEST_TRACEPARENT = 512
# Of all codes these say that the server, and not the caller, was wrong: the conventions for servers of gRPC.
_OUR_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class Spans:
    """Make spans of calls, batches and jobs. Names and attributes are those of docs/tracing.md; no text is in any."""

    def __init__(self, exporter: SpanExporter, share: float = 1.0) -> None:
        self._exporter = exporter
        resource = Resource.create({"service.name": "twofold", "service.version": VERSION})
        self._provider = TracerProvider(
            sampler=ParentBased(_OfRoots(share)),
            resource=resource.merge(OTELResourceDetector().detect()),  # What the variables say has the last word.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("twofold_server", VERSION)

    @classmethod
    def to(cls, endpoint: str, share: float) -> Spans:
        """Send spans to a collector, which need not be there. The variables OTEL_EXPORTER_OTLP_* say the rest."""
        return cls(OTLPSpanExporter(endpoint=endpoint), share)

    def begin(self, procedure: str, metadata: Iterable[tuple[str, str | bytes]]) -> Call:
        """Begin the span of a call, below the one that its metadata names if it names one."""
        method = procedure.removeprefix("/")
        above = next((value for key, value in metadata if key == "traceparent" and isinstance(value, str)), "")
        span = self._tracer.start_span(
            method,
            _below(above),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
        )
        context = span.get_span_context()
        return Call(span, f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)

    def end(self, call: Call, code: str) -> None:
        """End it with the name of a gRPC code."""
        if call.is_recorded:
            call.span.set_attribute("rpc.response.status_code", code)
            call.span.set_attributes({f"twofold.{kind}.id": value for kind, value in call.about.items()})
            if code in _OUR_FAULTS:
                call.span.set_attribute("error.type", code)
                call.span.set_status(Status(StatusCode.ERROR))
        call.span.end()

    def tell(self, call: Call, stages: Iterable[Stage]) -> None:
        """Make a span below the call's for each of its stages."""
        above, now = trace.set_span_in_context(call.span, Context()), _Now()
        for stage in stages:
            links = [Link(stage.batch)] if stage.batch else None
            span = self._tracer.start_span(stage.name, above, links=links, start_time=now.at(stage.started_at))
            span.end(now.at(stage.started_at + stage.seconds))

    def batch(self, calls: Sequence[Call], started_at: float, *, error: str = "", **about: str | int) -> SpanContext:
        """Make the span of a batch that has just ended, linked to its calls, and return what a Stage names it by."""
        now = _Now()
        span = self._tracer.start_span(
            "batch",
            Context(),
            attributes={f"twofold.batch.{name}": value for name, value in about.items()},
            links=[Link(call.span.get_span_context()) for call in calls],
            start_time=now.at(started_at),
        )
        _fail(span, error)
        span.end(now.ns)
        return span.get_span_context()

    def add_finished(self, span: FinishedSpan) -> None:
        """Record a span that has ended, with its children, as a trace of its own."""
        self._record(span, Context())

    def _record(self, span: FinishedSpan, parent: Context) -> None:
        linked = trace.get_current_span(_below(span.linked)).get_span_context()
        recorded = self._tracer.start_span(
            span.name,
            parent,
            attributes=dict(span.attributes),
            links=[Link(linked)] if linked.is_valid else None,
            start_time=_ns(span.started_at),
        )
        for child in span.children:
            self._record(child, trace.set_span_in_context(recorded, Context()))
        _fail(recorded, span.error)
        recorded.end(_ns(span.ended_at))

    def close(self) -> None:
        """Send what was not sent yet, for some seconds at most. This blocks."""
        # The SDK waits half a minute for a collector that is gone, so somebody else waits for it.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_PATIENCE)
        if last.is_alive():
            log.warning("the collector of traces does not take the last spans")
            self._exporter.shutdown()
            last.join(_PATIENCE)


def _below(traceparent: str) -> Context:
    """Return the context of what W3C Trace Context names; an empty one if that is nothing valid.

    Nothing else that a caller may send is read. We call nobody, to whom a tracestate or baggage could be of use, and
    OpenTelemetry would log what it cannot read of them.
    """
    if len(traceparent) > _LONGEST_TRACEPARENT:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


class _OfRoots(Sampler):
    """Choose among the spans that have no parent: a share of the calls, the batches of chosen calls, and all jobs."""

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
        """Decide about one."""
        if name == JOB_SPAN or any(link.context.trace_flags.sampled for link in links or ()):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return self._by_share.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Name it."""
        return f"OfRoots{{{self._by_share.get_description()}}}"


class _Now:
    """This moment on both clocks, to tell what time it was at a moment of the monotonic one."""

    def __init__(self) -> None:
        self.ns = time.time_ns()
        self._monotonic = time.monotonic()

    def at(self, moment: float) -> int:
        """Return nanoseconds since 1970."""
        return self.ns - int((self._monotonic - moment) * 1e9)


def _fail(span: Any, error: str) -> None:
    """Mark a span as failed, if it has."""
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)

"""Recorded spans as a tree."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from twofold_server.observability.otel import OtelTracer

STAGES = ("queue", "infer", "decode")


def key(index):
    """Return the key of a span."""
    return index.trace_id, index.span_id


class Recording:
    """An exporter that records spans. They are complete after the server has stopped."""

    def __init__(self, share=1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = OtelTracer(self.exporter, share)

    @property
    def tree(self):
        """Return all recorded spans."""
        return Tree(self.exporter.get_finished_spans())


@dataclass
class Tree:
    """Spans by name and parent."""

    spans: tuple

    def named(self, name):
        """Return the spans with a name, in order of their start."""
        return sorted((item for item in self.spans if item.name == name), key=lambda item: item.start_time)

    def single(self, name):
        """Return the only span of a name."""
        (actual,) = self.named(name)
        return actual

    def below(self, span):
        """Return the children of a span, in order of their export."""
        return [item for item in self.spans if item.parent and key(item.parent) == key(span.context)]

    def calls(self):
        """Return the spans of calls."""
        return [item for item in self.spans if item.kind is SpanKind.SERVER]

    def check_inference(self, texts):
        """Assert what docs/tracing.md says about calls and batches with *texts* texts in all."""
        batches = {key(item.context): item for item in self.named("batch")}
        linked = defaultdict(set)
        for call in self.calls():
            tokenize, *stages = self.below(call)
            assert tokenize.name == "tokenize"
            by_name = {name: [stage for stage in stages if stage.name == name] for name in STAGES}
            assert sum(map(len, by_name.values())) == len(stages)
            assert len({len(item) for item in by_name.values()}) == 1
            assert len(by_name["infer"]) >= 1
            for queue, infer, decode in zip(*by_name.values(), strict=True):
                assert tokenize.end_time - _SLACK <= queue.start_time <= queue.end_time <= infer.start_time + _SLACK
                assert infer.end_time <= decode.start_time + _SLACK
                assert decode.end_time <= call.end_time + _SLACK
                (link,) = infer.links
                batch = batches[key(link.context)]
                assert batch.start_time - _SLACK <= infer.start_time
                assert decode.end_time <= batch.end_time + _SLACK
                assert [key(item.context) for item in decode.links] == [key(link.context)]
                linked[key(link.context)].add(key(call.context))
        assert linked == {name: {key(link.context) for link in item.links} for name, item in batches.items()}
        assert all(
            item.parent is None and item.attributes["twofold.batch.checkpoint"] == "a" for item in batches.values()
        )
        assert sum(item.attributes["twofold.batch.texts"] for item in batches.values()) == texts


_SLACK = 50_000_000
"""Nanoseconds by which two looks at both clocks may differ on a machine that has much to do."""


class Caller:
    """An application with its own spans."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("caller")

    def span(self, name):
        """Start a span that is current until the block ends."""
        return self.tracer.start_as_current_span(name)

"""Spans that were made, as a tree to ask."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from twofold_server.observability.otel import OtelTracer

STAGES = ("queue", "infer", "decode")


def key(place):
    """Name a span in a set."""
    return place.trace_id, place.span_id


class Recording:
    """A maker of spans that keeps them here. They are complete when the server has ended."""

    def __init__(self, share=1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = OtelTracer(self.exporter, share)

    @property
    def tree(self):
        """All that was made."""
        return Tree(self.exporter.get_finished_spans())


@dataclass
class Tree:
    """Spans, to be found by their names and by who is above them."""

    spans: tuple

    def named(self, name):
        """Return the spans of a name, in the order of their beginnings."""
        return sorted((one for one in self.spans if one.name == name), key=lambda one: one.start_time)

    def one(self, name):
        """Return the only span of a name."""
        (found,) = self.named(name)
        return found

    def below(self, span):
        """Return the children of a span, in the order in which they were told."""
        return [one for one in self.spans if one.parent and key(one.parent) == key(span.context)]

    def calls(self):
        """Return the spans of calls."""
        return [one for one in self.spans if one.kind is SpanKind.SERVER]

    def check_inference(self, texts):
        """Assert what docs/tracing.md says of calls and batches, of whatever was answered; *texts* were, in all."""
        batches = {key(one.context): one for one in self.named("batch")}
        linked = defaultdict(set)
        for call in self.calls():
            tokenize, *stages = self.below(call)
            assert tokenize.name == "tokenize"
            by_name = {name: [one for one in stages if one.name == name] for name in STAGES}
            assert sum(map(len, by_name.values())) == len(stages)
            assert len({len(one) for one in by_name.values()}) == 1
            assert len(by_name["infer"]) >= 1
            for queue, infer, decode in zip(*by_name.values(), strict=True):
                assert tokenize.end_time - _SLACK <= queue.start_time <= queue.end_time <= infer.start_time + _SLACK
                assert infer.end_time <= decode.start_time + _SLACK
                assert decode.end_time <= call.end_time + _SLACK
                (link,) = infer.links
                batch = batches[key(link.context)]
                assert batch.start_time - _SLACK <= infer.start_time
                assert decode.end_time <= batch.end_time + _SLACK
                assert [key(one.context) for one in decode.links] == [key(link.context)]
                linked[key(link.context)].add(key(call.context))
        assert linked == {name: {key(link.context) for link in one.links} for name, one in batches.items()}
        assert all(one.parent is None and one.attributes["twofold.batch.checkpoint"] == "a" for one in batches.values())
        assert sum(one.attributes["twofold.batch.texts"] for one in batches.values()) == texts


_SLACK = 50_000_000
"""Nanoseconds by which two looks at both clocks may differ on a machine that has much to do."""


class Caller:
    """An application that has spans of its own."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("caller")

    def span(self, name):
        """Begin a span that is current until the block ends."""
        return self.tracer.start_as_current_span(name)

"""Traces of calls and batches over real gRPC: the span tree is the documented one, for any batch."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import StatusCode
from support import tiny_checkpoints
from support.running_server import gated, running
from support.span_tree import Caller, Recording, key
from twofold import AsyncClient, TwofoldError
from twofold.v1 import inference_pb2 as pb
from twofold_server.inference.engine import Engine
from twofold_server.observability.logs import JsonFormatter

PREDICT = "twofold.v1.InferenceService/Predict"


@asynccontextmanager
async def traced(store, *, share=1.0, **settings):
    """Run a server with tracing; yield it, a client and the recording, which is complete when the server has stopped."""
    recording = Recording(share)
    async with running(store, recording.tracer, **settings) as server, AsyncClient(server.target) as client:
        yield server, client, recording


async def test_a_call_goes_on_in_the_trace_of_its_caller(store):
    """A call within a caller's span has its trace and parent, conventional names, and its stages as children."""
    caller = Caller()

    async with traced(store) as (_, client, recording):
        with caller.span("checkout"):
            await client.predict("rain in oslo")
    tree = recording.tree
    (own,) = caller.exporter.get_finished_spans()
    call = tree.single(PREDICT)

    tree.check_inference(texts=1)
    assert key(call.parent) == key(own.context)
    assert dict(call.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": PREDICT,
        "rpc.response.status_code": "OK",
    }
    assert call.status.status_code is StatusCode.UNSET
    assert [span.name for span in tree.below(call)] == ["tokenize", "queue", "infer", "decode"]
    assert {span.context.trace_id for span in tree.spans if span.name != "batch"} == {own.context.trace_id}
    assert call.resource.attributes["service.name"] == "twofold"


async def test_one_pass_serves_many_traces(store):
    """Calls that share a pass have separate traces; the batch links to all of them, and they link to the batch."""
    async with traced(store, passes=1) as (server, client, recording):
        with gated() as gate:
            first = asyncio.create_task(client.predict("rain"))
            await gate.wait_until_busy()
            others = [asyncio.create_task(client.predict([text] * 2)) for text in ("play", "wake", "rain")]
            await server.until("twofold_queue_tokens", 18)
            gate.open.set()
            await asyncio.gather(first, *others)
    tree = recording.tree

    tree.check_inference(texts=7)
    assert [len(span.links) for span in tree.named("batch")] == [1, 3]
    assert len({call.context.trace_id for call in tree.calls()}) == 4


MIXES = [
    pytest.param({"passes": 2, "max_batch_tokens": 64}, (1, 7, 40, 3), 0, id="requests-in-many-batches"),
    pytest.param({"passes": 1, "max_batch_tokens": 2048}, (2, 2, 2, 2), 0, id="one-pass-at-a-time"),
    pytest.param({"passes": 2, "threads": 1}, (1,) * 24, 600, id="long-texts-tokenized-on-threads"),
]


@pytest.mark.parametrize(("settings", "sizes", "length"), MIXES)
async def test_the_tree_in_any_batch(store, settings, sizes, length):
    """However requests are batched, each has its stages, and each batch links to exactly its calls."""
    async with traced(store, **settings) as (_, client, recording):
        texts = [[f"{'so ' * length}{tiny_checkpoints.TEXTS[number % 3]}" for number in range(size)] for size in sizes]
        await asyncio.gather(*(client.predict(text) for text in texts))
    tree = recording.tree

    tree.check_inference(texts=sum(sizes))
    assert len(tree.calls()) == len(sizes)


async def test_requests_of_a_stream(store):
    """A stream is one call with the stages of each of its requests."""
    async with traced(store) as (_, client, recording):
        async for _ in client.predict_stream(["rain", "play", "wake"]):
            pass
    tree = recording.tree
    (call,) = tree.calls()

    assert call.name == "twofold.v1.InferenceService/PredictStream"
    names = [span.name for span in tree.below(call)]
    assert names.count("tokenize") == names.count("infer") - names.count("queue") + names.count("decode") >= 1
    assert {span.context.trace_id for span in tree.spans if span.name != "batch"} == {call.context.trace_id}


async def test_no_text_in_any_span(store):
    """No text or name of a caller is in any attribute, name or event."""
    async with traced(store) as (_, client, recording):
        await client.predict("secretword in oslo")
        await client.embed("secretword")
        with pytest.raises(TwofoldError):
            await client.promote("secretword of mine")
    tree = recording.tree

    assert len(tree.calls()) == 3
    assert not any("secretword" in span.to_json() or "oslo" in span.to_json() for span in tree.spans)
    assert (
        tree.single("twofold.v1.CheckpointService/PromoteCheckpoint").attributes["twofold.checkpoint.id"]
        == "(invalid id)"
    )


SHARES = [(0.0, False, 0), (0.0, True, 1), (1.0, False, 1), (1.0, True, 1)]


@pytest.mark.parametrize(("share", "by_caller", "calls"), SHARES)
async def test_who_is_recorded(store, share, by_caller, calls):
    """A share of the calls is recorded, and every call whose caller's trace is recorded."""
    caller = Caller()

    async with traced(store, share=share) as (_, client, recording):
        if by_caller:
            with caller.span("checkout"):
                await client.predict("rain")
        else:
            await client.predict("rain")
    tree = recording.tree

    tree.check_inference(texts=calls)
    assert len(tree.calls()) == len(tree.named("batch")) == calls


async def test_a_batch_of_recorded_and_other_calls(store):
    """A batch links only to its recorded calls."""
    caller = Caller()

    async with traced(store, share=0.0, passes=1) as (server, client, recording):
        with gated() as gate:
            first = asyncio.create_task(client.predict("rain"))
            await gate.wait_until_busy()
            with caller.span("checkout"):
                others = [asyncio.create_task(client.predict("play"))]
            others.append(asyncio.create_task(client.predict("wake")))
            await server.until("twofold_queue_tokens", 6)
            gate.open.set()
            await asyncio.gather(first, *others)
    tree = recording.tree
    (batch,) = tree.named("batch")

    assert [key(link.context) for link in batch.links] == [key(tree.single(PREDICT).context)]
    assert batch.attributes["twofold.batch.texts"] == 2


async def test_a_pass_that_fails(store, monkeypatch):
    """Batch and call have an error status; the error text is only in the log."""

    def fail(*_):
        raise RuntimeError("the text was secretword")

    async with traced(store) as (_, client, recording):
        monkeypatch.setattr(Engine, "run", fail)
        with pytest.raises(TwofoldError):
            await client.predict("rain", timeout=20)
    tree = recording.tree
    batch, call = tree.single("batch"), tree.single(PREDICT)

    assert (batch.status.status_code, batch.attributes["error.type"]) == (StatusCode.ERROR, "RuntimeError")
    assert (call.status.status_code, call.attributes["error.type"]) == (StatusCode.ERROR, "INTERNAL")
    assert [key(link.context) for link in batch.links] == [key(call.context)]
    assert not any("secretword" in span.to_json() for span in tree.spans)


async def test_a_call_that_was_wrong(store):
    """An invalid request sets the status code of the call, but not an error status."""
    async with traced(store) as (_, client, recording):
        with pytest.raises(TwofoldError):
            await client.predict([])
    call = recording.tree.single(PREDICT)

    assert call.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert call.status.status_code is StatusCode.UNSET


async def test_log_lines_say_where_they_belong(store):
    """A log line during a call has the ids of its span and trace; other lines have none."""
    lines, caller = [], Caller()

    class Keeping(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(JsonFormatter().format(record)))

    log, handler = logging.getLogger("twofold_server"), Keeping()
    level = log.level
    log.setLevel("INFO")
    log.addHandler(handler)
    try:
        async with traced(store) as (_, client, recording):
            with caller.span("operate"):
                await client.promote("b")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    call = recording.tree.single("twofold.v1.CheckpointService/PromoteCheckpoint")
    (audit,) = [line for line in lines if line["logger"] == "twofold_server.audit"]

    assert (int(audit["trace_id"], 16), int(audit["span_id"], 16)) == key(call.context)
    assert call.parent.trace_id == int(audit["trace_id"], 16)
    assert call.attributes["twofold.checkpoint.id"] == "b"
    assert all("trace_id" not in line for line in lines if line["message"] in {"listening", "draining"})


HEADERS = ("traceparent", "tracestate", "baggage", "authorization")
WRITTEN = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200) | st.sampled_from(
    ["00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01", "a=b," * 40, "00-1-1-1"]
)


@given(st.lists(st.tuples(st.sampled_from(HEADERS), WRITTEN | st.binary(max_size=20)), max_size=6))
def test_hostile_metadata(metadata):
    """Whatever the metadata says, the call has a valid span context."""
    call = RECORDING.tracer.start_call(f"/{PREDICT}", metadata)
    RECORDING.tracer.end_call(call, "OK")

    assert len(call.trace_id) == 32
    assert len(call.span_id) == 16
    assert int(call.trace_id, 16)
    assert int(call.span_id, 16)


RECORDING = Recording()


async def test_hostile_metadata_over_the_wire(store, caplog):
    """A call with an invalid traceparent is answered in a new trace, and nothing of it is logged."""
    recording = Recording()

    with caplog.at_level("DEBUG", "opentelemetry"):
        async with running(store, recording.tracer) as server:
            for value in ("", "x" * 1000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
                metadata = (("traceparent", value), ("tracestate", value), ("baggage", value))
                await server.inference.Predict(pb.PredictRequest(texts=["rain"]), metadata=metadata, timeout=30)

    assert [call.parent for call in recording.tree.calls()] == [None] * 3
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]

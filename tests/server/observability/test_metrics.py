"""Metric values after known traffic, read from the port."""

from __future__ import annotations

import asyncio

import pytest
from support import tiny_checkpoints
from support.running_server import gated, read_metrics, refusal, running
from twofold.v1 import checkpoints_pb2
from twofold.v1 import inference_pb2 as pb


async def test_values_after_known_traffic(store):
    """Three good calls, an invalid one and a swap give exactly these values."""
    async with running(store, rollback_seconds=0) as server:
        await server.predict("rain")  # 3 tokens
        await server.predict("rain in oslo", "play")  # 5 + 3 tokens, padded to 10
        await server.inference.Embed(pb.EmbedRequest(texts=["wake"]))  # 3 tokens
        await refusal(server.predict())
        promotion = checkpoints_pb2.PromoteCheckpointRequest(checkpoint="b")
        await server.checkpoints.PromoteCheckpoint(promotion)
        await server.until("twofold_engines", 1)
        values = await asyncio.to_thread(read_metrics, server.metrics_url)

    def value(name, **labels):
        return values[name, tuple(sorted(labels.items()))]

    assert value("twofold_requests_total", method="Predict", code="OK") == 2
    assert value("twofold_requests_total", method="Predict", code="INVALID_ARGUMENT") == 1
    assert value("twofold_requests_total", method="Embed", code="OK") == 1
    assert value("twofold_requests_total", method="PromoteCheckpoint", code="OK") == 1
    assert value("twofold_request_seconds_count", method="Predict") == 3
    assert value("twofold_requests_in_flight", method="Predict") == 0
    assert value("twofold_texts_total", method="Predict") == 3
    assert value("twofold_texts_total", method="Embed") == 1
    assert value("twofold_tokens_total", kind="text") == 14
    assert value("twofold_tokens_total", kind="padding") == 2
    assert value("twofold_batch_windows_count") == 3
    assert value("twofold_batch_windows_sum") == 4
    assert value("twofold_batch_tokens_sum") == 16
    assert value("twofold_queue_tokens") == 0
    assert value("twofold_stage_seconds_count", stage="tokenize") == 3
    assert value("twofold_stage_seconds_count", stage="queue") == 4
    assert value("twofold_stage_seconds_count", stage="infer") == 3
    assert value("twofold_stage_seconds_count", stage="decode") == 3
    assert (
        0
        < value("twofold_stage_seconds_sum", stage="infer")
        < value("twofold_request_seconds_sum", method="Predict") + 5
    )
    assert value("twofold_shed_total", reason="queue") == value("twofold_shed_total", reason="requests") == 0
    assert value("twofold_dropped_total", reason="deadline") == 0
    assert value("twofold_ready") == 1
    assert value("twofold_engines") == 1
    assert value("twofold_checkpoint_info", checkpoint="b") == 1
    assert ("twofold_checkpoint_info", (("checkpoint", "a"),)) not in values
    assert value("twofold_swaps_total", outcome="succeeded") == 1
    assert value("twofold_swap_seconds_count") == 1


async def test_every_method_has_its_counters_from_the_start(store):
    """Before the first call of a method its counters are 0, so that a rate sees the first error."""
    async with running(store) as server:
        values = await asyncio.to_thread(read_metrics, server.metrics_url)

    for method in ("Predict", "PredictStream", "Adapt", "WatchJob", "PromoteCheckpoint"):
        for code in ("OK", "INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"):
            assert values["twofold_requests_total", (("code", code), ("method", method))] == 0


async def test_waiting_tokens_and_calls_are_seen_while_they_wait(store):
    """While the engine is blocked, the queue and the calls in flight are visible; afterwards both are 0."""
    async with running(store) as server:
        with gated() as gate:
            first = asyncio.ensure_future(server.predict("rain"))
            await gate.wait_until_busy()
            others = [asyncio.ensure_future(server.predict("rain")) for _ in range(3)]
            await server.until("twofold_requests_in_flight", 4, method="Predict")
            await server.until("twofold_queue_tokens", 9)
            gate.open.set()
            await asyncio.gather(first, *others)
        await server.until("twofold_requests_in_flight", 0, method="Predict")
        await server.until("twofold_queue_tokens", 0)


@pytest.mark.parametrize("texts", [1, 40])
async def test_labels_are_bounded(texts, store):
    """The number of time series does not depend on the number of texts and checkpoints."""
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag="c"))

    async with running(store) as server:

        async def series():
            return len(await asyncio.to_thread(read_metrics, server.metrics_url))

        async def traffic(name):
            await server.predict(*(f"rain {number}" for number in range(texts)))
            request = checkpoints_pb2.PromoteCheckpointRequest(checkpoint=name)
            await server.checkpoints.PromoteCheckpoint(request)

        await traffic("b")
        before = await series()
        for name in ("c", "a", "b"):
            await traffic(name)
        assert await series() == before

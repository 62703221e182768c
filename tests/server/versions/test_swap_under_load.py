"""Swaps under load: no request fails, is stale or mixed."""

from __future__ import annotations

import asyncio
import random

import pytest
from support import tiny_checkpoints
from support.running_server import running
from twofold.v1 import checkpoints_pb2

pytestmark = pytest.mark.slow

SWAPS = 12
CALLERS = 6


async def test_swaps_under_load(store):
    """During many swaps every request is answered, and never by a checkpoint that was replaced before the request began."""
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag="c", reverse_vocabulary=True))
    texts = [f"{'so ' * length}{word} in new york" for length in (0, 3, 40) for word in ("rain", "play", "wake")]
    expected = {
        (tag, text): tiny_checkpoints.answer(text, recipe) for tag, recipe in recipes().items() for text in texts
    }

    answered = []
    stop = asyncio.Event()

    async def call(server, chance):
        while not stop.is_set():
            chosen = chance.sample(texts, chance.randint(1, 5))
            # What was live when the request began is the oldest that may answer; what comes next may, too.
            started_at = len(order)
            response = await server.predict(*chosen)
            answered.append((started_at, len(order), chosen, response))

    order = ["a"]
    async with running(store, max_batch_tokens=128) as server:
        callers = [asyncio.create_task(call(server, random.Random(seed))) for seed in range(CALLERS)]
        for number in range(SWAPS):
            live = "bca"[number % 3]
            promotion = server.checkpoints.PromoteCheckpoint(checkpoints_pb2.PromoteCheckpointRequest(checkpoint=live))
            assert (await promotion).replaced_id == order[-1]
            order.append(live)
            assert await server.is_serving()
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*callers)
        await server.until("twofold_engines", 2)  # The one before stands by, and no other.
    assert len(answered) > SWAPS
    for started_at, ended, chosen, response in answered:
        # A promotion takes effect shortly before its caller hears of it, hence one more.
        allowed = {*order[started_at - 1 : ended], "abc"[ended % 3]}
        for text, prediction in zip(chosen, response.predictions, strict=True):
            tag = prediction.checkpoint_id
            assert tag in allowed
            best = expected[tag, text]
            assert prediction.label == best.labels[0].label
            assert prediction.labels[0].score == pytest.approx(best.labels[0].score, abs=1e-4)
            assert [(e.start, e.end, e.type) for e in prediction.entities] == [
                (e.start, e.end, e.type) for e in best.entities
            ]


def recipes():
    """Return the recipes by their tags."""
    return {
        "a": tiny_checkpoints.Recipe(),
        "b": tiny_checkpoints.Recipe(tag="b"),
        "c": tiny_checkpoints.Recipe(tag="c", reverse_vocabulary=True),
    }

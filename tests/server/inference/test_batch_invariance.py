"""A text has the same answer in any batch of any size, whatever is swapped meanwhile."""

from __future__ import annotations

import asyncio
import threading
from copy import copy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_checkpoints
from twofold_server.config.settings import EngineSettings
from twofold_server.inference.batcher import Batcher
from twofold_server.inference.engine import Engine
from twofold_server.inference.predictor import Predictor
from twofold_server.inference.slot import Slot
from twofold_server.observability.metrics import Metrics
from twofold_server.versions.loader import load_engine

pytestmark = pytest.mark.slow

RECIPES = {
    "a": tiny_checkpoints.Recipe(),
    "b": tiny_checkpoints.Recipe(tag="b"),
    "c": tiny_checkpoints.Recipe(tag="c", reverse_vocabulary=True),
}
"""The last one numbers its tokens otherwise."""
WORDS = st.sampled_from(
    [*tiny_checkpoints.vocabulary(tiny_checkpoints.Recipe())[4:40], "oslo", "new york", "😀", "unheard-of"]
)
TEXTS = st.lists(WORDS, max_size=60).map(" ".join)
STEPS = st.lists(
    st.one_of(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([*RECIPES]), st.integers(1, 3)),
    min_size=1,
    max_size=20,
)
"""A request of texts, a checkpoint that is made live, or so many passes that the engine may run."""


@cache
def loaded():
    """The engines of all checkpoints, loaded once."""
    store = tiny_checkpoints.make_store(Path(mkdtemp()))
    return {
        tag: load_engine(tiny_checkpoints.publish(store, recipe), EngineSettings(threads=1))
        for tag, recipe in RECIPES.items()
    }


@cache
def alone(tag, text):
    """Compute the answer to a text in NumPy, window by window, without neighbours or padding."""
    return tiny_checkpoints.answer(text, RECIPES[tag])


async def play(steps, budget, passes):
    """Play a scenario; return for each request its texts, the checkpoints that were live meanwhile, and its answers."""
    metrics, order, calls = Metrics(), ["a"], []
    slot = Slot(metrics)
    slot.swap(copy(loaded()["a"]))  # A copy, for what is replaced is closed.
    batcher = Batcher(slot, metrics, max_batch_tokens=budget, max_queue_tokens=1 << 20, passes=passes)
    inference = Predictor(slot, batcher, metrics, max_requests=100, threads=1)
    may_run, run = threading.Semaphore(0), Engine.run

    def held(engine, ids, mask, outputs):
        assert may_run.acquire(timeout=20)
        return run(engine, ids, mask, outputs)

    with mock.patch.object(Engine, "run", held):
        batcher.start()
        try:
            for step in steps:
                if isinstance(step, int):
                    may_run.release(step)
                elif isinstance(step, str):
                    order.append(step)
                    slot.swap(copy(loaded()[step]))
                else:
                    calls.append((step, len(order) - 1, asyncio.create_task(inference.predict(step))))
                await asyncio.sleep(0.001)
            may_run.release(10_000)
            return [(texts, order[since:], await call) for texts, since, call in calls]
        finally:
            may_run.release(10_000)
            await batcher.stop()
            inference.stop()
            slot.drain()


@settings(max_examples=25, deadline=None)
@given(STEPS, st.integers(8, 512), st.integers(1, 2))
async def test_neighbours_padding_and_swaps_change_nothing(steps, budget, passes):
    """Each text gets the answer of the checkpoint that it names, and that checkpoint was live since the request began."""
    for texts, allowed, actual in await play(steps, budget, passes):
        for text, tag, answer in zip(texts, actual.checkpoint_ids, actual.answers, strict=True):
            assert tag in allowed
            expected = alone(tag, text)
            assert [label.label for label in answer.labels] == [label.label for label in expected.labels]
            spans = [[(e.start, e.end, e.type) for e in item.entities] for item in (answer, expected)]
            assert spans[0] == spans[1]
            for left, right in zip(
                (*answer.labels, *answer.entities), (*expected.labels, *expected.entities), strict=True
            ):
                assert left.score == pytest.approx(right.score, abs=1e-5)

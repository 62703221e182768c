"""Batcher and predictor over real engines, without gRPC: batches, limits, deadlines, failures and swaps."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
from support import tiny_checkpoints
from support.running_server import gated
from twofold_server.config.settings import EngineSettings
from twofold_server.errors import DeadlineExceededError, NotServingError, OverloadedError
from twofold_server.inference.batcher import Batcher
from twofold_server.inference.engine import Engine
from twofold_server.inference.predictor import Predictor
from twofold_server.inference.slot import Slot
from twofold_server.inference.throughput import ThroughputEstimator
from twofold_server.observability.metrics import Metrics
from twofold_server.versions.loader import load_engine


@dataclass
class Scene:
    """A predictor with its collaborators."""

    inference: Predictor
    batcher: Batcher
    slot: Slot
    metrics: Metrics
    load: object

    async def labels(self, *texts, **kwargs):
        """Return the labels of texts."""
        actual = await self.inference.predict(texts, **kwargs)
        return [answer.labels[0].label for answer in actual.answers]

    async def queued(self, tokens):
        """Wait until a number of tokens is queued."""
        for _ in range(500):
            if self.value("twofold_queue_tokens") == tokens:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.value('twofold_queue_tokens')} tokens wait and not {tokens}")

    def value(self, name, **labels):
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(name, labels)


@asynccontextmanager
async def scene(store, *, batch=256, queue=4096, requests=64, passes=1, wait=float("inf"), batches=(), answered=()):
    """A function that serves checkpoint "a" without a port, by default with one pass at a time."""
    settings, metrics = EngineSettings(threads=1), Metrics()
    slot = Slot(metrics)
    slot.swap(load_engine(store.get("a"), settings))
    batcher = Batcher(
        slot, metrics, max_batch_tokens=batch, max_queue_tokens=queue, max_wait=wait, passes=passes, listeners=batches
    )
    batcher.start()
    inference = Predictor(slot, batcher, metrics, max_requests=requests, threads=2, listeners=answered)
    try:
        yield Scene(inference, batcher, slot, metrics, lambda name: load_engine(store.get(name), settings))
    finally:
        await batcher.stop()
        inference.stop()
        await asyncio.to_thread(slot.drain)


async def test_requests_that_wait_share_a_pass(store):
    """Requests that wait while the engine is busy are answered in one batch."""
    async with scene(store) as served:
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            others = [asyncio.create_task(served.labels(text)) for text in ("play", "wake", "rain", "song")]
            await served.queued(12)
            gate.open.set()
            answers = await asyncio.gather(first, *others)

        assert answers == [["a_weather"], ["a_music"], ["a_alarm"], ["a_weather"], ["a_music"]]
        assert gate.passes == [("a", 1), ("a", 4)]
        assert served.value("twofold_batch_windows_sum") == 5
        assert served.value("twofold_queue_tokens") == 0


async def test_a_large_request_is_split_and_comes_back_in_order(store):
    """Texts of a large request return in their order, although they were in many batches."""
    texts = [f"{'please ' * (index * 7 % 23)}{word}" for index, word in enumerate(["rain", "play", "wake"] * 20)]

    async with scene(store, batch=128) as served:
        actual = await served.inference.predict(texts)

        assert [a.labels[0].label for a in actual.answers] == ["a_weather", "a_music", "a_alarm"] * 20
        assert served.value("twofold_batch_windows_count") > 5


async def test_too_many_requests_are_rejected_at_once(store):
    """Beyond max_requests a request is rejected before tokenization, with a retry delay."""
    async with scene(store, requests=2) as served:
        with gated() as gate:
            waiting = [asyncio.create_task(served.labels("rain")) for _ in range(2)]
            await gate.wait_until_busy()
            with pytest.raises(OverloadedError) as caught:
                await served.labels("rain")
            assert caught.value.retry_after > 0
            assert served.value("twofold_shed_total", reason="requests") == 1
            gate.open.set()
            await asyncio.gather(*waiting)
        assert await served.labels("rain") == ["a_weather"]


async def test_a_full_queue_refuses_and_empties(store):
    """Beyond max_queue_tokens a request is rejected; after the queued ones are answered, there is room again."""
    async with scene(store, queue=20) as served:
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            waiting = [asyncio.create_task(served.labels("rain")) for _ in range(6)]
            await served.queued(18)
            with pytest.raises(OverloadedError, match="the queue holds 18 of"):
                await served.labels("rain")
            assert served.value("twofold_shed_total", reason="queue") == 1
            for each in waiting[:3]:
                each.cancel()
            await asyncio.sleep(0)
            late = asyncio.create_task(served.labels("play"))
            await served.queued(12)
            gate.open.set()
            assert await late == ["a_music"]
            await asyncio.gather(first, *waiting[3:])
        assert served.value("twofold_dropped_total", reason="cancelled") == 3


async def test_requests_that_would_wait_too_long_are_rejected_before_reading(store):
    """A request that would wait too long is rejected before it is read, but not after it was admitted.

    At 10,000 tokens per second and a limit of 10 ms, with a pass of 19 tokens in progress, 21 tokens are admitted before reading and
    31 after it. When all are answered, there is room again.
    """
    async with scene(store, wait=0.01) as served:
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            waiting = [asyncio.create_task(served.labels("rain")) for _ in range(7)]
            await served.queued(21)
            served.inference.check_room()
            waiting.append(asyncio.create_task(served.labels("rain")))
            await served.queued(24)
            with pytest.raises(OverloadedError, match="about 10 ms of work") as refused:
                served.inference.check_room()
            assert refused.value.retry_after > 0
            waiting += [asyncio.create_task(served.labels("rain")) for _ in range(3)]
            await served.queued(33)
            with pytest.raises(OverloadedError, match="about 10 ms of work"):
                await served.labels("play", "wake")
            assert served.value("twofold_shed_total", reason="wait") == 2
            assert served.value("twofold_queue_tokens") == 33
            gate.open.set()
            assert await asyncio.gather(first, *waiting) == [["a_weather"]] * 12
        served.inference.check_room()
        assert await served.labels("play") == ["a_music"]


async def test_a_slow_request_is_answered_if_nothing_waits(store):
    """A request that takes longer than the limit is answered if nothing else waits."""
    async with scene(store, wait=0.001) as served:
        assert await served.labels(*["rain"] * 200) == ["a_weather"] * 200


async def test_a_pass_takes_a_quarter_of_the_time_at_most(store):
    """A pass takes at most a quarter of the limit: with 10 ms and 10,000 tokens per second, eight texts of three tokens, and two wait."""
    async with scene(store, wait=0.01) as served:
        with gated() as gate, mock.patch.object(ThroughputEstimator, "update"):
            calls = [asyncio.create_task(served.labels("rain"))]
            await gate.wait_until_busy()
            calls += [asyncio.create_task(served.labels("rain")) for _ in range(10)]
            await served.queued(30)
            gate.open.set()
            await asyncio.gather(*calls)

        assert gate.passes == [("a", 1), ("a", 8), ("a", 2)]


async def test_an_empty_queue_takes_a_request_above_its_bound(store):
    """A request larger than the whole queue is answered if the queue is empty, and rejected otherwise."""
    text = "so very much rain " * 100

    async with scene(store, queue=64) as served:
        assert await served.labels(text) == ["a_weather"]
        with gated() as gate:
            calls = [asyncio.create_task(served.labels("rain"))]
            await gate.wait_until_busy()
            calls.append(asyncio.create_task(served.labels("play")))
            await served.queued(3)
            with pytest.raises(OverloadedError, match="send fewer texts per request"):
                await served.labels(text)
            gate.open.set()
            await asyncio.gather(*calls)


async def test_expired_texts_never_reach_the_engine(store):
    """A text whose deadline passes in the queue is dropped and counted, and other texts are answered."""
    async with scene(store) as served:
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            late = asyncio.create_task(served.labels("play", deadline=time.monotonic() + 0.05))
            patient = asyncio.create_task(served.labels("wake"))
            await served.queued(6)
            await asyncio.sleep(0.1)
            gate.open.set()
            with pytest.raises(DeadlineExceededError):
                await late
            assert await first + await patient == ["a_weather", "a_alarm"]
        assert gate.passes == [("a", 1), ("a", 1)]
        assert served.value("twofold_dropped_total", reason="deadline") == 1


async def test_abandoned_texts_do_not_reach_the_next_engine(store):
    """After a swap, expired and abandoned texts are in no pass of the new engine."""
    async with scene(store) as served:
        new = await asyncio.to_thread(served.load, "b")
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            late = asyncio.create_task(served.labels("play", deadline=time.monotonic() + 0.05))
            left = asyncio.create_task(served.labels("play"))
            patient = asyncio.create_task(served.labels("wake"))
            await served.queued(9)
            served.slot.swap(new)
            await asyncio.sleep(0.1)
            left.cancel()
            await asyncio.sleep(0)
            gate.open.set()
            with pytest.raises(DeadlineExceededError):
                await late
            assert await first + await patient == ["a_weather", "b_alarm"]
        assert gate.passes == [("a", 1), ("b", 1)]
        assert [served.value("twofold_dropped_total", reason=why) for why in ("deadline", "cancelled")] == [1, 1]


async def test_a_request_that_waits_until_its_deadline_counts_as_slow(store):
    """Preemption counts requests that expire in the queue as slow, but not those that the caller cancels."""
    heard = []
    listener = mock.Mock(spec=["request_finished"], request_finished=heard.append)

    async with scene(store, answered=[listener]) as served:
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            late, gone = (
                asyncio.create_task(served.labels("play", deadline=time.monotonic() + 0.05)) for _ in range(2)
            )
            left = asyncio.create_task(served.labels("wake"))
            await served.queued(9)
            left.cancel()
            await asyncio.sleep(0.1)
            gone.cancel()  # As gRPC does at the deadline.
            await asyncio.gather(left, gone, return_exceptions=True)
            assert len(heard) == 1
            gate.open.set()
            with pytest.raises(DeadlineExceededError):
                await late
            await first
        assert len(heard) == 3
        assert min(heard) >= 0.1


async def test_an_engine_that_fails_fails_one_batch(store):
    """If an engine fails, only the callers of that batch get an error; the next batch is answered."""
    async with scene(store) as served:
        with mock.patch.object(Engine, "run", side_effect=MemoryError("no more")):
            failed = await asyncio.gather(served.labels("rain", "play"), served.labels("wake"), return_exceptions=True)
        assert [type(error) for error in failed] == [MemoryError] * 2

        assert await served.labels("rain") == ["a_weather"]


@pytest.mark.parametrize("ask", ["predict", "embed"])
async def test_a_text_with_nan_fails_alone(store, ask):
    """If a text gives NaN, only its caller gets an error, the others get their answers, and the failure is counted."""
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag="c", breaks=("sunny",)), name="c")
    message = []

    def listen(checkpoint, *, seconds, failed):
        message.append((checkpoint, failed))

    async with scene(store, batches=[mock.Mock(spec=["batch_finished"], batch_finished=listen)]) as served:
        served.slot.swap(await asyncio.to_thread(served.load, "c"))
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            calls = [getattr(served.inference, ask)([text]) for text in ("play", "so sunny today", "wake")]
            others = [asyncio.create_task(call) for call in calls]
            await served.queued(11)
            gate.open.set()
            play, sunny, wake = await asyncio.gather(*others, return_exceptions=True)
            await first

        assert gate.passes == [("c", 1), ("c", 3)]
        assert [len(actual.answers) for actual in (play, wake)] == [1, 1]
        assert repr(sunny) == "FloatingPointError('c returned values that are not finite')"
        assert message == [("c", False), ("c", True)]


async def test_stopping_answers_queued_requests(store):
    """stop() returns after the last answer, and later requests are rejected."""
    async with scene(store) as served:
        with gated() as gate:
            waiting = [asyncio.create_task(served.labels("rain"))]
            await gate.wait_until_busy()
            waiting += [asyncio.create_task(served.labels("rain")) for _ in range(4)]
            await served.queued(12)
            stopping = asyncio.create_task(served.batcher.stop())
            await asyncio.sleep(0.02)
            with pytest.raises(NotServingError):
                await served.labels("play")
            gate.open.set()
            await stopping
            assert await asyncio.gather(*waiting) == [["a_weather"]] * 5


async def test_a_batch_runs_on_one_engine_and_late_ones_on_the_new(store):
    """After a swap between two batches of one request, each text names its checkpoint, and no pass mixes engines."""
    async with scene(store, batch=24) as served:
        new = await asyncio.to_thread(served.load, "b")
        with gated() as gate:
            call = asyncio.create_task(served.inference.predict(["rain in oslo please"] * 6))
            await gate.wait_until_busy()
            served.slot.swap(new)
            gate.open.set()
            actual = await call

        assert actual.checkpoint_ids == ["a"] * 4 + ["b"] * 2
        assert [a.labels[0].label[0] for a in actual.answers] == actual.checkpoint_ids
        assert [a.entities[0].type[0] for a in actual.answers] == actual.checkpoint_ids
        assert gate.passes == [("a", 4), ("b", 2)]


async def test_another_tokenizer_reads_the_text_again(store):
    """A text is tokenized again if the new checkpoint has another tokenizer."""
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag="c", reverse_vocabulary=True))

    async with scene(store) as served:
        new = await asyncio.to_thread(served.load, "c")
        assert new.encoding_key != served.slot.live.encoding_key
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            waiting = asyncio.create_task(served.inference.predict(["wake me today in new york"]))
            await served.queued(9)
            served.slot.swap(new)
            gate.open.set()
            await first
            actual = await waiting

        assert actual.checkpoint_ids == ["c"]
        recipe = tiny_checkpoints.Recipe(tag="c", reverse_vocabulary=True)
        expected = tiny_checkpoints.answer("wake me today in new york", recipe)
        assert actual.answers[0].labels[0].label == expected.labels[0].label == "c_alarm"
        spans = [(e.start, e.end, e.type) for e in expected.entities]
        assert [(e.start, e.end, e.type) for e in actual.answers[0].entities] == spans


async def test_equal_tokenizers_do_not_tokenize_twice(store):
    """A text is not tokenized again if the new checkpoint has the same tokenizer."""
    async with scene(store) as served:
        new = await asyncio.to_thread(served.load, "b")
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            waiting = asyncio.create_task(served.labels("play"))
            await served.queued(3)
            served.slot.swap(new)
            with mock.patch.object(new.encoder, "encode", side_effect=AssertionError):
                gate.open.set()
                assert await first + await waiting == ["a_weather", "b_music"]


async def test_features_and_predictions_never_share_a_pass(store):
    """Embed and Predict need different outputs and never share a pass."""
    async with scene(store) as served:
        with gated() as gate:
            first = asyncio.create_task(served.labels("rain"))
            await gate.wait_until_busy()
            both = [asyncio.create_task(served.labels("play")), asyncio.create_task(served.inference.embed(["play"]))]
            await served.queued(6)
            gate.open.set()
            _, (_, embedded) = await first, await asyncio.gather(*both)

        assert gate.passes == [("a", 1)] * 3
        assert embedded.answers[0].pooled.shape == (tiny_checkpoints.WIDTH,)
        assert embedded.answers[0].offsets.tolist() == [[0, 4]]


async def test_concurrent_passes_share_the_queue(store):
    """With two concurrent passes, a large request is divided between them, and its answers return in order."""
    together = threading.Barrier(2, timeout=10)
    run, sizes = Engine.run, []

    def meet(self, input_ids, attention_mask, outputs):
        sizes.append(len(input_ids))
        together.wait()  # Breaks unless both are in a pass at the same time.
        return run(self, input_ids, attention_mask, outputs)

    async with scene(store, passes=2, batch=1024) as served:
        with mock.patch.object(Engine, "run", meet):
            answers = await served.labels(*["rain in oslo please", "play in oslo please"] * 16)

        assert answers == ["a_weather", "a_music"] * 16
        assert len(sizes) == 2
        assert sum(sizes) == 32
        assert min(sizes) >= 12  # Up to the padding that a pass may have.


async def test_every_pass_ends_when_the_batcher_stops(store):
    """stop() answers all texts in passes and in the queue, and leaves no thread."""
    async with scene(store, passes=3) as served:
        with gated() as gate:
            waiting = [asyncio.create_task(served.labels("rain")) for _ in range(8)]
            await gate.wait_until_busy()
            stopping = asyncio.create_task(served.batcher.stop())
            await asyncio.sleep(0.02)
            gate.open.set()
            await stopping
            assert await asyncio.gather(*waiting) == [["a_weather"]] * 8
        assert not [thread for thread in threading.enumerate() if thread.name == "engine"]

"""InferenceService over a real port."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from support import tiny_checkpoints
from support.running_server import gated, refusal, running
from twofold.v1 import inference_pb2 as pb
from twofold_checkpoint.store import Store
from twofold_server.api.servicers.inference import MAX_STREAM_REQUESTS

FAR = "so very much and the " * 500


def spans(prediction):
    """Return a prediction's entities."""
    return [(entity.start, entity.end, entity.type) for entity in prediction.entities]


async def test_both_heads_answer_in_one_call(store):
    """A prediction has a label, entities and the checkpoint, and the response has timings."""
    async with running(store) as server:
        response = await server.predict(*tiny_checkpoints.TEXTS)

        assert [prediction.label for prediction in response.predictions] == [
            tiny_checkpoints.answer(text).labels[0].label for text in tiny_checkpoints.TEXTS
        ]
        assert spans(response.predictions[0]) == [(8, 12, "a_place"), (13, 18, "a_date")]
        assert all(0.9 < entity.score <= 1 for entity in response.predictions[0].entities)
        assert {prediction.checkpoint_id for prediction in response.predictions} == {response.checkpoint_id} == {"a"}
        assert response.timings.tokenize_seconds > 0
        assert response.timings.infer_seconds > 0
        assert response.timings.decode_seconds > 0


async def test_a_long_text_is_read_to_its_end(store):
    """A text of thousands of tokens is answered, and an entity at its end has the right position."""
    text = f"oslo {FAR}new york"

    async with running(store) as server:
        response = await server.predict(text, "rain")

        assert spans(response.predictions[0]) == [(0, 4, "a_place"), (len(text) - 8, len(text), "a_place")]
        assert response.predictions[1].label == "a_weather"


async def test_an_entity_on_the_seam_of_two_windows_is_whole(store):
    """A span of two words across the boundary of two windows is one entity."""
    texts = [f"{'so ' * count}new york{' so' * 40}" for count in range(20, 44)]

    async with running(store) as server:
        response = await server.predict(*texts)

        for count, prediction in zip(range(20, 44), response.predictions, strict=True):
            assert spans(prediction) == [(3 * count, 3 * count + 8, "a_place")]


UNITS = [
    (pb.OFFSET_UNIT_UNSPECIFIED, (2, 6)),
    (pb.OFFSET_UNIT_CODE_POINT, (2, 6)),
    (pb.OFFSET_UNIT_UTF16, (3, 7)),
    (pb.OFFSET_UNIT_UTF8, (5, 9)),
]


@pytest.mark.parametrize(("unit", "offsets"), UNITS)
async def test_offsets_have_the_requested_unit(unit, offsets, store):
    """After an emoji, the offsets of entities and tokens depend on the requested unit."""
    async with running(store) as server:
        predicted = await server.predict("😀 oslo", offset_unit=unit)
        request = pb.EmbedRequest(texts=["😀 oslo"], include_tokens=True, offset_unit=unit)
        embedded = await server.inference.Embed(request)

        assert spans(predicted.predictions[0]) == [(*offsets, "a_place")]
        last = embedded.embeddings[0].tokens[-1]
        assert (last.start, last.end) == offsets


HEADS = [
    ([], True, True),
    ([pb.HEAD_CLASSIFIER], True, False),
    ([pb.HEAD_NER], False, True),
    ([pb.HEAD_NER, pb.HEAD_CLASSIFIER], True, True),
]


@pytest.mark.parametrize(("heads", "label", "entities"), HEADS)
async def test_only_requested_heads_are_answered(heads, label, entities, store):
    """The results of a head that was not requested are empty."""
    async with running(store) as server:
        [prediction] = (await server.predict("rain in oslo", heads=heads)).predictions

        assert (bool(prediction.label), bool(prediction.labels), bool(prediction.entities)) == (label, label, entities)


@pytest.mark.parametrize(("requested", "given"), [(0, 1), (1, 1), (2, 2), (3, 3), (99, 3)])
async def test_top_labels_limits_the_labels(requested, given, store):
    """Zero means one label, too many means all, and the best label is first."""
    async with running(store) as server:
        [prediction] = (await server.predict("rain", top_labels=requested)).predictions

        scores = [label.score for label in prediction.labels]
        assert len(scores) == given
        assert scores == sorted(scores, reverse=True)
        assert prediction.label == prediction.labels[0].label


async def test_embed_gives_the_features(store):
    """Pooled features have the hidden size; tokens, if requested, have positions and no special tokens."""
    async with running(store) as server:
        plain = await server.inference.Embed(pb.EmbedRequest(texts=["rain in oslo", ""]))
        full = await server.inference.Embed(pb.EmbedRequest(texts=["rain in oslo", ""], include_tokens=True))

        assert [len(embedding.pooled) for embedding in plain.embeddings] == [tiny_checkpoints.WIDTH] * 2
        assert not plain.embeddings[0].tokens
        assert [(token.start, token.end) for token in full.embeddings[0].tokens] == [(0, 4), (5, 7), (8, 12)]
        assert {len(token.vector) for token in full.embeddings[0].tokens} == {tiny_checkpoints.WIDTH}
        assert not full.embeddings[1].tokens
        assert plain.checkpoint_id == "a"


async def test_get_model_describes_the_live_checkpoint(store):
    """Labels, types, sizes and limits are those of the live checkpoint and the settings."""
    async with running(store, max_texts=7) as server:
        model = await server.inference.GetModel(pb.GetModelRequest())

        assert model.checkpoint_id == "a"
        assert list(model.labels) == ["a_weather", "a_music", "a_alarm"]
        assert list(model.entity_types) == ["a_place", "a_date"]
        assert (model.hidden_size, model.max_tokens) == (tiny_checkpoints.WIDTH, tiny_checkpoints.MAX_TOKENS)
        assert (model.limits.max_texts, model.limits.max_characters) == (7, 20_000)
        assert model.server_version
        assert model.precision == "fp32"


WRONG = [
    ({"texts": []}, "texts", "send at least one"),
    ({"texts": ["a"] * 5}, "texts", "at most 4"),
    ({"texts": ["a", "b" * 21]}, "texts[1]", "21 characters"),
    ({"texts": ["a"], "heads": [9]}, "heads[0]", "unknown head 9"),
    ({"texts": ["a"], "heads": [1, 0]}, "heads[1]", "HEAD_NER"),
    ({"texts": ["a"], "heads": [1] * 17}, "heads", "has 17 entries; the maximum is 16"),
    ({"texts": ["a"], "top_labels": -1}, "top_labels", "-1 is negative"),
    ({"texts": ["a"], "offset_unit": 7}, "offset_unit", "unknown unit 7"),
]


@pytest.mark.parametrize(("fields", "field", "says"), WRONG)
async def test_a_wrong_field_is_named(fields, field, says, store):
    """INVALID_ARGUMENT names the field, its fault and the fix."""
    async with running(store, max_texts=4, max_characters=20) as server:
        code, error = await refusal(server.inference.Predict(pb.PredictRequest(**fields)))

        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == "INVALID_REQUEST"
        [violation] = error.violations
        assert violation.field == field
        assert says in violation.description


async def test_all_wrong_fields_are_named_at_once(store):
    """All invalid fields are reported at once, up to the limit of the trailers."""
    async with running(store, max_characters=20) as server:
        request = pb.PredictRequest(texts=["x" * 30], heads=[9], top_labels=-1)
        _, error = await refusal(server.inference.Predict(request))
        assert [violation.field for violation in error.violations] == ["texts[0]", "heads[0]", "top_labels"]

        request = pb.PredictRequest(texts=["x" * 30] * 256)
        code, error = await refusal(server.inference.Predict(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert len(error.violations) == 10


async def answers_of(call):
    """Read a stream to its end; return the responses, and the error or None."""
    actual = []
    try:
        async for item in call:
            actual.append([prediction.label for prediction in item.response.predictions])  # noqa: PERF401 -- kept on an error.
    except grpc.aio.AioRpcError as error:
        return actual, error
    return actual, None


def stream_of(*requests):
    """Return a stream of requests, each with the given texts."""
    return iter([pb.PredictStreamRequest(request=pb.PredictRequest(texts=texts)) for texts in requests])


async def test_a_stream_is_answered_in_order(store):
    """A stream with more requests than are processed at once gives complete answers in order."""
    words = {"rain": "a_weather", "play": "a_music", "wake": "a_alarm"}
    requests = [[word] * (1 + number % 5) for number, word in enumerate([*words] * 20)]

    async with running(store) as server:
        actual, error = await answers_of(server.inference.PredictStream(stream_of(*requests)))
        assert error is None
        assert actual == [[words[text] for text in texts] for texts in requests]
        assert await server.metric("twofold_texts_total", method="PredictStream") == sum(map(len, requests))


async def test_a_bad_request_ends_its_stream_after_the_good_ones(store):
    """Requests before an invalid one are answered; then the status names the field."""
    async with running(store) as server:
        actual, error = await answers_of(server.inference.PredictStream(stream_of(["rain"], ["play"], [], ["wake"])))
        assert actual == [["a_weather"], ["a_music"]]
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "texts" in error.details()


async def test_a_stream_waits_where_a_call_is_shed(store):
    """With room for two requests, all forty of a stream are answered, while a unary call may be shed."""
    async with running(store, max_requests=2) as server:
        actual, error = await answers_of(server.inference.PredictStream(stream_of(*[["rain"]] * 40)))
        assert (actual, error) == ([["a_weather"]] * 40, None)
        assert await server.metric("twofold_shed_total", reason="requests") > 0


async def test_a_stream_reads_no_further_than_it_answers(store):
    """While the engine is busy, a limited number of requests is read from an endless stream, and none is left after its cancellation."""
    async with running(store) as server:
        taken = 0

        async def endless():
            nonlocal taken
            while True:
                taken += 1
                yield pb.PredictStreamRequest(request=pb.PredictRequest(texts=["rain " * 200]))

        with gated() as gate:
            call = server.inference.PredictStream(endless())
            reading = asyncio.create_task(answers_of(call))
            await gate.wait_until_busy()
            before = -1
            for _ in range(30):
                if taken == before:
                    break
                before = taken
                await asyncio.sleep(0.3)
            assert taken == before
            assert await server.metric("twofold_queue_tokens") <= (MAX_STREAM_REQUESTS + 2) * 300
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            gate.open.set()
            await server.until("twofold_queue_tokens", 0)
            await server.until("twofold_requests_in_flight", 0, method="PredictStream")
            left = [task for task in asyncio.all_tasks() if "InferenceServicer" in repr(task)]
            assert left == []


async def test_an_empty_store_is_served_as_unavailable_until_a_promotion(tmp_path):
    """Without a checkpoint calls give UNAVAILABLE and health is NOT_SERVING; a promotion changes both."""
    store = Store(tmp_path)

    async with running(store) as server:
        for call in (server.predict("rain"), server.inference.GetModel(pb.GetModelRequest())):
            code, error = await refusal(call)
            assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_SERVING")
        assert not await server.is_serving()
        tiny_checkpoints.publish(store)
        await promote(server, "a")
        assert await server.is_serving()
        assert (await server.predict("rain")).checkpoint_id == "a"


async def promote(server, name):
    """Call PromoteCheckpoint."""
    from twofold.v1 import checkpoints_pb2

    return await server.checkpoints.PromoteCheckpoint(checkpoints_pb2.PromoteCheckpointRequest(checkpoint=name))


async def test_shed_load_has_a_retry_delay(store):
    """RESOURCE_EXHAUSTED has RetryInfo, comes before the request is read, and leaves health at SERVING."""
    async with running(store, max_requests=3) as server:
        with gated() as gate:
            waiting = [asyncio.ensure_future(server.predict("rain")) for _ in range(3)]
            await gate.wait_until_busy()
            await server.until("twofold_requests_in_flight", 3, method="Predict")
            for texts in (["rain"], []):  # The second would be wrong at any other time.
                code, error = await refusal(server.predict(*texts))
                assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
                assert error.retry_after > 0
            assert await server.is_serving()
            gate.open.set()
            await asyncio.gather(*waiting)
        assert (await server.predict("rain")).predictions
        assert await server.metric("twofold_shed_total", reason="requests") == 2


@pytest.mark.parametrize(
    ("call", "method"),
    [
        (lambda server: server.predict("rain"), "Predict"),
        (lambda server: server.inference.Embed(pb.EmbedRequest(texts=["rain"])), "Embed"),
    ],
)
async def test_calls_that_would_wait_too_long_are_shed(call, method, store):
    """A call that would wait longer than max_wait_ms is rejected with RetryInfo and counted; a stream waits."""
    async with running(store, max_wait_ms=0.1, passes=1) as server:
        with gated() as gate:
            waiting = [asyncio.ensure_future(server.predict("rain"))]
            await gate.wait_until_busy()
            waiting.append(asyncio.ensure_future(server.predict("rain")))
            await server.until("twofold_queue_tokens", 3)
            stream = asyncio.ensure_future(answers_of(server.inference.PredictStream(stream_of(["play"]))))
            code, error = await refusal(call(server))
            assert (code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert error.retry_after > 0
            assert not stream.done()
            gate.open.set()
            await asyncio.gather(*waiting)
        assert await stream == ([["a_music"]], None)
        assert await server.metric("twofold_shed_total", reason="wait") > 0
        assert await server.metric("twofold_requests_total", method=method, code="RESOURCE_EXHAUSTED") == 1
        assert (await server.predict("rain")).predictions


async def test_a_deadline_that_passes_in_the_queue_costs_no_pass(store):
    """The caller gets DEADLINE_EXCEEDED, the text does not reach the engine, and other calls are answered."""
    async with running(store) as server:
        with gated() as gate:
            first = asyncio.ensure_future(server.predict("rain"))
            await gate.wait_until_busy()
            code, _ = await refusal(server.predict("play", patience=0.1))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            await server.until("twofold_requests_total", 1, method="Predict", code="DEADLINE_EXCEEDED")
            gate.open.set()
            await first
        await server.predict("wake")
        assert gate.passes == [("a", 1)]
        dropped = [await server.metric("twofold_dropped_total", reason=item) for item in ("deadline", "cancelled")]
        assert sum(dropped) == 1


async def test_a_cancelled_call_costs_no_pass(store):
    """A cancelled call leaves the queue, is counted as CANCELLED, and other calls are answered."""
    async with running(store) as server:
        with gated() as gate:
            first = asyncio.ensure_future(server.predict("rain"))
            await gate.wait_until_busy()
            leaving = server.inference.Predict(pb.PredictRequest(texts=["play"]))
            await server.until("twofold_queue_tokens", 3)
            leaving.cancel()
            await server.until("twofold_requests_total", 1, method="Predict", code="CANCELLED")
            gate.open.set()
            await first
        assert gate.passes == [("a", 1)]
        assert await server.metric("twofold_dropped_total", reason="cancelled") == 1

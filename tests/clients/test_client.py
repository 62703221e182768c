import asyncio
import gc
import threading
from dataclasses import replace

import grpc
import pytest
from clients.samples import FAST_RETRY, PREDICTIONS, TEXT
from twofold import (
    AsyncClient,
    Checkpoint,
    Client,
    DeadlineExceededError,
    Exact,
    Example,
    FailedPreconditionError,
    Health,
    Hyperparameters,
    InvalidArgumentError,
    JobState,
    NotFoundError,
    OverloadedError,
    Span,
    Statistical,
    TwofoldError,
    UnavailableError,
)
from twofold._methods import adaptation
from twofold.testing import FakeServer, job_script

EXAMPLES = [
    Example(text="Ada", label="x", entities=(Span(start=0, end=3, type="PER"),)),
    Example(text="b", entities=()),
]


def test_predict_one(call):
    """One text returns one prediction."""
    prediction = call("predict", TEXT)

    assert prediction == replace(PREDICTIONS[TEXT], checkpoint_id="first")


def test_predict_many(call, server):
    """A list of texts returns predictions in the same order, and the settings are sent."""
    predictions = call("predict", [TEXT, "b"], heads=["ner"], offset_unit="utf16", top_labels=3)

    assert [len(predictions), predictions[0].label, len(predictions[0].entities)] == [2, "", 2]
    assert server.requests[-1].fields == {
        "texts": [TEXT, "b"],
        "heads": ["HEAD_NER"],
        "offset_unit": "OFFSET_UNIT_UTF16",
        "top_labels": 3,
    }


def test_predict_stream(call, server):
    """Any number of texts are sent in batches, and the predictions have the same order."""
    texts = (TEXT if number % 2 else "b" for number in range(70))

    predictions = call("predict_stream", texts, heads=["classifier"], top_labels=2)

    assert [prediction.label for prediction in predictions[:2]] == [call("predict", text).label for text in ("b", TEXT)]
    assert len(predictions) == 70
    requests = [message["request"] for message in server.requests[0].fields]
    assert [len(request["texts"]) for request in requests] == [32, 32, 6]
    assert all(request["heads"] == ["HEAD_CLASSIFIER"] and request["top_labels"] == 2 for request in requests)


def test_predict_stream_without_texts(call):
    """Without texts there are no predictions."""
    assert call("predict_stream", []) == []


def test_predict_stream_errors(call, server):
    """The error that ends a stream is raised: the server's, or that of the texts after all earlier texts are sent."""

    def texts():
        yield from [TEXT] * 32
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        call("predict_stream", texts())
    assert len(server.requests[-1].fields) == 1

    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="PredictStream", after_events=1)
    with pytest.raises(UnavailableError):
        call("predict_stream", [TEXT] * 64)
    with pytest.raises(ValueError, match="parser"):
        call("predict_stream", [TEXT], heads=["parser"])


def test_closing_a_prediction_stream_stops_reading(client):
    """Closing the iterator stops reading an infinite source."""
    read = 0

    def texts():
        nonlocal read
        while True:
            read += 1
            yield TEXT

    predictions = client.predict_stream(texts())
    next(predictions)
    predictions.close()

    read_at_close = read
    client.predict("a")
    client.predict("a")
    assert read <= read_at_close + 32


def test_invalid_predict_requests(call):
    """An unknown head is refused by the client, an empty list by the server."""
    with pytest.raises(ValueError, match="parser"):
        call("predict", "a", heads=["parser"])
    with pytest.raises(InvalidArgumentError, match="texts is empty"):
        call("predict", [])


def test_embed(call):
    """Embeddings have the length of the hidden size."""
    embeddings = call("embed", ["a", "b"])

    assert [len(embedding.pooled) for embedding in embeddings] == [4, 4]
    assert embeddings[0] == call("embed", "a")


def test_model_and_health(call, server):
    """The model and the health are those of the server."""
    assert call("model").entity_types == ("LOC", "PER")
    assert call("health") is Health.SERVING
    server.serving = False
    assert call("health", "twofold.v1.InferenceService") is Health.NOT_SERVING


def test_adapt(call, server):
    """Every argument of adapt is sent in the field of the contract."""
    job = call(
        "adapt", EXAMPLES, EXAMPLES[:1], head="ner", freeze="staged", protection=Exact(), label_policy="fixed",
        promote="never", hyperparameters=Hyperparameters(epochs=3), annotated_types=["PER"], base_checkpoint="first",
        seed=7, max_runtime=1.5, request_id="mine", validate_only=True,
    )  # fmt: skip

    assert (job.id, job.head, job.freeze) == ("job-1", "ner", "staged")
    example = {"text": "Ada", "label": "x", "entities": {"entities": [{"end": 3, "type": "PER"}]}}
    assert server.requests[-1].fields == {
        "dataset": {
            "inline": {"train": [example, {"text": "b", "entities": {}}], "dev": [example]},
            "annotated_types": ["PER"],
        },
        "head": "HEAD_NER",
        "freeze": "FREEZE_MODE_STAGED",
        "protection": {"exact": {}},
        "label_policy": "LABEL_POLICY_FIXED",
        "hyperparameters": {"epochs": 3},
        "max_runtime": "1.500s",
        "promote": "PROMOTE_POLICY_NEVER",
        "base_checkpoint": "first",
        "seed": "7",
        "request_id": "mine",
        "validate_only": True,
    }


def test_adapt_uploads_large_data(call, server, monkeypatch):
    """Examples that do not fit into a request are uploaded in several messages."""
    monkeypatch.setattr(adaptation, "INLINE_BYTES", 1000)
    monkeypatch.setattr(adaptation, "BATCH_BYTES", 500)
    many = [Example(text=f"text {i}", label="x") for i in range(200)]

    call("adapt", iter(many), many[:5], head="classifier", protection=Statistical(0.5))

    assert server.uploads["upload-1"] == (tuple(many), tuple(many[:5]))
    assert server.requests[-1].fields["dataset"] == {"upload_id": "upload-1"}
    assert len(server.requests[-2].fields) > 5


def test_upload(call, server):
    """Adapt accepts an upload or its id, and no dev examples beside it."""
    upload = call("upload_dataset", EXAMPLES, EXAMPLES[:1], display_name="cities")

    assert (upload.train_examples, upload.dev_examples) == (2, 1)
    assert call("adapt", upload, head="ner").id == "job-1"
    assert call("adapt", upload.upload_id, head="ner").id == "job-2"
    with pytest.raises(ValueError, match="its own dev examples"):
        call("adapt", upload, EXAMPLES, head="ner")
    with pytest.raises(NotFoundError):
        call("adapt", "nowhere", head="ner")


def test_a_retried_adapt_keeps_its_request_id(call, server):
    """A retried call has the same request id, so that it creates one job."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="Adapt")

    call("adapt", EXAMPLES, head="ner")

    first, second = (request.fields["request_id"] for request in server.requests)
    assert first == second


def test_jobs_and_checkpoints_are_paged(call):
    """Iterating fetches all pages."""
    for _ in range(5):
        call("adapt", EXAMPLES, head="ner")

    assert [job.id for job in call("jobs", page_size=2)] == [f"job-{i}" for i in (5, 4, 3, 2, 1)]
    assert len(call("checkpoints", page_size=2)) == 6


def test_wait_and_promotion(call):
    """The checkpoint of a succeeded job is live, and a rollback undoes that."""
    job = call("wait", call("adapt", EXAMPLES, head="ner"))

    assert (job.state, job.is_over, job.report.verdict) == (JobState.SUCCEEDED, True, "pass")
    assert job.report.protected.before == 0.9
    assert call("checkpoint").id == job.candidate_checkpoint_id
    assert call("roll_back").checkpoint.id == "first"
    assert call("promote", Checkpoint(id="job-1-candidate")).replaced_id == "first"


def test_watch_ends_with_the_job(call):
    """The events are in order, and the last one contains the final state."""
    events = call("watch", call("adapt", EXAMPLES, head="ner"))

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].payload is JobState.SUCCEEDED
    assert any(event.warning for event in events)


@pytest.mark.parametrize("after", [0, 3])
def test_watch_resumes(call, server, after):
    """A broken stream is resumed without losing or repeating an event."""
    job = call("adapt", EXAMPLES, head="ner")
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", after_events=after, times=4)

    events = call("watch", job)

    assert [event.sequence for event in events] == list(range(1, 17))
    assert int(server.requests[-1].fields.get("after_sequence", 0)) == 4 * after


def test_watch_gives_up(call, server):
    """A watch that cannot be resumed raises the error, and a watch of an unknown job at once."""
    job = call("adapt", EXAMPLES, head="ner")
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", times=9)

    with pytest.raises(UnavailableError):
        call("watch", job)
    with pytest.raises(NotFoundError, match="no job 'nope'"):
        call("watch", "nope")


def test_wait_gives_up(call, server):
    """A wait that times out names the state of the job, which continues to run."""
    server.play_next(job_script(state=None))
    job = call("adapt", EXAMPLES, head="ner")

    with pytest.raises(DeadlineExceededError, match=r"job-1 is still running after 0\.2 s"):
        call("wait", job, timeout=0.2)
    assert call("cancel", job).state is JobState.CANCELLED
    assert call("wait", job).reason == "Cancelled by the caller."
    with pytest.raises(FailedPreconditionError, match="already cancelled"):
        call("cancel", job)


def test_shed_load(call, server):
    """Shed load is retried if the server sends a delay, otherwise raised."""
    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.01)
    assert call("predict", TEXT).label == "statement"
    assert len(server.requests) == 2

    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL")
    with pytest.raises(OverloadedError) as raised:
        call("predict", TEXT)
    assert (raised.value.reason, raised.value.retry_after) == ("QUEUE_FULL", None)


def test_roll_back_is_never_retried(call, server):
    """A second rollback would undo the first."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(UnavailableError):
        call("roll_back")
    assert len(server.requests) == 1


def test_delete_checkpoint(call, server):
    """A checkpoint that nothing needs is deleted; one that an alias or a job needs is kept."""
    first, second = (call("adapt", EXAMPLES, head="ner", promote="manual") for _ in range(2))
    server.play_next(job_script(state=None))
    running = call("adapt", EXAMPLES, head="ner", promote="manual")

    def refused(checkpoint):
        with pytest.raises(FailedPreconditionError) as raised:
            call("delete_checkpoint", checkpoint)
        assert raised.value.reason == "CHECKPOINT_IN_USE"
        return raised.value.message

    assert "it is 'current'" in refused("first")
    call("promote", first.id + "-candidate")
    assert "it is 'previous'" in refused("first")
    call("promote", second.id + "-candidate")
    assert f"job {running.id!r} builds on it" in refused("first")
    call("cancel", running)
    call("delete_checkpoint", Checkpoint(id="first"))

    assert [checkpoint.id for checkpoint in call("checkpoints")] == ["job-2-candidate", "job-1-candidate"]
    with pytest.raises(NotFoundError):
        call("delete_checkpoint", "first")


def test_delete_checkpoint_is_never_retried(call, server):
    """A second deletion would fail with NotFoundError."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(UnavailableError):
        call("delete_checkpoint", "first")
    assert len(server.requests) == 1


def test_deadline(call):
    """A call raises DeadlineExceededError after its timeout."""

    def slow(text):
        released.wait(5)
        return PREDICTIONS[TEXT]

    released = threading.Event()
    with FakeServer(slow) as server, Client(server.target) as client:
        with pytest.raises(DeadlineExceededError):
            client.predict(TEXT, timeout=0.05)
        released.set()


def test_restart_of_the_server():
    """A client works after a restart of its server."""
    server = FakeServer(PREDICTIONS)
    with server, Client(server.target) as client:
        client.model()
        server.__exit__()
        with pytest.raises(TwofoldError):
            client.model(timeout=0.2)
        server.__enter__()
        assert client.model().backbone == "fake"


def test_closing_a_watch(client, server):
    """Closing the iterator closes the stream."""
    server.play_next(job_script(state=None))
    job = client.adapt(EXAMPLES, head="ner")

    events = client.watch(job)
    next(events)
    events.close()

    assert client.cancel(job).is_over


def test_threads_share_a_client(client):
    """Threads may use one client at the same time."""
    labels = []
    threads = [threading.Thread(target=lambda: labels.append(client.predict(TEXT).label)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert labels == ["statement"] * 8


async def test_tasks_share_a_client(server):
    """Tasks may use one client at the same time, and cancelling one does not affect the others."""
    async with AsyncClient(server.target, retry=FAST_RETRY) as client:
        tasks = [asyncio.create_task(client.predict(TEXT)) for _ in range(8)]
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result).__name__ for result in results].count("Prediction") == 7


def test_repr_and_close(server):
    """The representation has the target and the state, and a closed client raises."""
    client = Client(server.target)
    assert repr(client) == f"<Client {server.target} open>"
    client.close()
    assert repr(client) == f"<Client {server.target} closed>"
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.model()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_unclosed(server, kind):
    """A client that is not closed causes a ResourceWarning."""
    client = kind(server.target)

    with pytest.warns(ResourceWarning, match=f"unclosed <{kind.__name__}"):
        del client


def test_failed_construction_does_not_warn():
    """A client whose constructor raised has nothing to close."""
    with pytest.raises(ValueError, match="not on this machine"):
        Client("elsewhere:1")
    gc.collect()

import asyncio
import gc
import threading

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
    """A text gives its prediction."""
    found = call("predict", TEXT)

    assert (found.label, found.labels, found.entities) == (
        "statement",
        PREDICTIONS[TEXT].labels,
        PREDICTIONS[TEXT].entities,
    )
    assert found.checkpoint_id == "first"


def test_predict_many(call, server):
    """A list of texts gives as many predictions in its order, and says what was asked for."""
    found = call("predict", [TEXT, "b"], heads=["ner"], offset_unit="utf16", top_labels=3)

    assert [len(found), found[0].label, len(found[0].entities)] == [2, "", 2]
    assert server.requests[-1].fields == {
        "texts": [TEXT, "b"],
        "heads": ["HEAD_NER"],
        "offset_unit": "OFFSET_UNIT_UTF16",
        "top_labels": 3,
    }


def test_predict_stream(call, server):
    """Any number of texts give their predictions in their order, sent in messages that each carry some of them."""
    texts = (TEXT if number % 2 else "b" for number in range(70))

    found = call("predict_stream", texts, heads=["classifier"], top_labels=2)

    assert [one.label for one in found[:2]] == [call("predict", text).label for text in ("b", TEXT)]
    assert len(found) == 70
    sent = [one["request"] for one in server.requests[0].fields]
    assert [len(one["texts"]) for one in sent] == [32, 32, 6]
    assert all(one["heads"] == ["HEAD_CLASSIFIER"] and one["top_labels"] == 2 for one in sent)


def test_predict_stream_of_nothing(call):
    """No texts give no predictions."""
    assert call("predict_stream", []) == []


def test_predict_stream_breaks(call, server):
    """What ends a stream is raised: the server's error, or that of the texts, after all that was sent before it."""

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


def test_leaving_a_prediction_stream_reads_no_further(client):
    """Whoever stops iterating over a source without an end is let go."""
    read = 0

    def texts():
        nonlocal read
        while True:
            read += 1
            yield TEXT

    found = client.predict_stream(texts())
    next(found)
    found.close()

    seen = read
    client.predict("a")
    client.predict("a")
    assert read <= seen + 32


def test_predict_refuses(call):
    """What is no head is refused before anything is sent, and what is no text by the server."""
    with pytest.raises(ValueError, match="parser"):
        call("predict", "a", heads=["parser"])
    with pytest.raises(InvalidArgumentError, match="texts is empty"):
        call("predict", [])


def test_embed(call):
    """Embeddings are tuples of floats as long as the model is wide."""
    found = call("embed", ["a", "b"])

    assert [len(one.pooled) for one in found] == [4, 4]
    assert found[0] == call("embed", "a")


def test_model_and_health(call, server):
    """The model and the health are what the server says."""
    assert call("model").entity_types == ("LOC", "PER")
    assert call("health") is Health.SERVING
    server.serving = False
    assert call("health", "twofold.v1.InferenceService") is Health.NOT_SERVING


def test_adapt(call, server):
    """Every argument of adapt reaches the server under the contract's name."""
    job = call(
        "adapt", EXAMPLES, EXAMPLES[:1], head="ner", freeze="staged", protection=Exact(), label_policy="fixed",
        promote="never", hyperparameters=Hyperparameters(epochs=3), annotated_types=["PER"], base_checkpoint="first",
        seed=7, max_runtime=1.5, request_id="mine", validate_only=True,
    )  # fmt: skip

    assert (job.id, job.head, job.freeze) == ("job-1", "ner", "staged")
    ada = {"text": "Ada", "label": "x", "entities": {"entities": [{"end": 3, "type": "PER"}]}}
    assert server.requests[-1].fields == {
        "dataset": {
            "inline": {"train": [ada, {"text": "b", "entities": {}}], "dev": [ada]},
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


def test_adapt_uploads_what_is_too_big(call, server, monkeypatch):
    """Examples that do not fit into a request are uploaded, in several messages, and none is lost."""
    monkeypatch.setattr(adaptation, "INLINE_BYTES", 1000)
    monkeypatch.setattr(adaptation, "BATCH_BYTES", 500)
    many = [Example(text=f"text {i}", label="x") for i in range(200)]

    call("adapt", iter(many), many[:5], head="classifier", protection=Statistical(0.5))

    assert server.uploads["upload-1"] == (tuple(many), tuple(many[:5]))
    assert server.requests[-1].fields["dataset"] == {"upload_id": "upload-1"}
    assert len(server.requests[-2].fields) > 5


def test_upload(call, server):
    """An upload can be adapted to by its result or its id, and takes no further examples."""
    upload = call("upload_dataset", EXAMPLES, EXAMPLES[:1], display_name="cities")

    assert (upload.train_examples, upload.dev_examples) == (2, 1)
    assert call("adapt", upload, head="ner").id == "job-1"
    assert call("adapt", upload.upload_id, head="ner").id == "job-2"
    with pytest.raises(ValueError, match="its own dev examples"):
        call("adapt", upload, EXAMPLES, head="ner")
    with pytest.raises(NotFoundError):
        call("adapt", "nowhere", head="ner")


def test_adapt_is_retried_as_one(call, server):
    """A job that is asked for again after a failure carries the same request id."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="Adapt")

    call("adapt", EXAMPLES, head="ner")

    first, second = (one.fields["request_id"] for one in server.requests)
    assert first == second


def test_jobs_and_checkpoints_are_paged(call):
    """Iterating goes over all pages."""
    for _ in range(5):
        call("adapt", EXAMPLES, head="ner")

    assert [job.id for job in call("jobs", page_size=2)] == [f"job-{i}" for i in (5, 4, 3, 2, 1)]
    assert len(call("checkpoints", page_size=2)) == 6


def test_wait_and_promotion(call):
    """A job that succeeded answers, and roll back undoes that."""
    job = call("wait", call("adapt", EXAMPLES, head="ner"))

    assert (job.state, job.is_over, job.report.verdict) == (JobState.SUCCEEDED, True, "pass")
    assert job.report.protected.before == 0.9
    assert call("checkpoint").id == job.candidate_checkpoint_id
    assert call("roll_back").checkpoint.id == "first"
    assert call("promote", Checkpoint(id="job-1-candidate")).replaced_id == "first"


def test_watch_ends_with_the_job(call):
    """The events come in order, and the last one holds the final state."""
    events = call("watch", call("adapt", EXAMPLES, head="ner"))

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].payload is JobState.SUCCEEDED
    assert any(event.warning for event in events)


@pytest.mark.parametrize("after", [0, 3])
def test_watch_survives_a_break(call, server, after):
    """A stream that breaks is taken up where it broke: no event is lost and none comes twice."""
    job = call("adapt", EXAMPLES, head="ner")
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", after_events=after, times=4)

    events = call("watch", job)

    assert [event.sequence for event in events] == list(range(1, 17))
    assert int(server.requests[-1].fields.get("after_sequence", 0)) == 4 * after


def test_watch_gives_up(call, server):
    """A watch that cannot be taken up ends with the error, and one of no job at once."""
    job = call("adapt", EXAMPLES, head="ner")
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", times=9)

    with pytest.raises(UnavailableError):
        call("watch", job)
    with pytest.raises(NotFoundError, match="no job 'nope'"):
        call("watch", "nope")


def test_wait_gives_up(call, server):
    """A wait that is too short says in what state the job is, which runs on until it is cancelled."""
    server.play_next(job_script(state=None))
    job = call("adapt", EXAMPLES, head="ner")

    with pytest.raises(DeadlineExceededError, match=r"job-1 is still running after 0\.2 s"):
        call("wait", job, timeout=0.2)
    assert call("cancel", job).state is JobState.CANCELLED
    assert call("wait", job).reason == "Cancelled by the caller."
    with pytest.raises(FailedPreconditionError, match="already cancelled"):
        call("cancel", job)


def test_shed_load(call, server):
    """Shed load is retried if the server says when, and told if it does not."""
    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.01)
    assert call("predict", TEXT).label == "statement"
    assert len(server.requests) == 2

    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL")
    with pytest.raises(OverloadedError) as raised:
        call("predict", TEXT)
    assert (raised.value.reason, raised.value.retry_after) == ("QUEUE_FULL", None)


def test_roll_back_is_never_retried(call, server):
    """Rolling back twice would lead forward again."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(UnavailableError):
        call("roll_back")
    assert len(server.requests) == 1


def test_delete_checkpoint(call, server):
    """A checkpoint that nothing needs is gone; one that an alias names, or on which a job builds, stays."""
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

    assert [one.id for one in call("checkpoints")] == ["job-2-candidate", "job-1-candidate"]
    with pytest.raises(NotFoundError):
        call("delete_checkpoint", "first")


def test_delete_checkpoint_is_never_retried(call, server):
    """The second of two deletions would say that there is no such checkpoint."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE)

    with pytest.raises(UnavailableError):
        call("delete_checkpoint", "first")
    assert len(server.requests) == 1


def test_deadline(call):
    """A server that takes too long is not waited for."""

    def slow(text):
        held.wait(5)
        return PREDICTIONS[TEXT]

    held = threading.Event()
    with FakeServer(slow) as server, Client(server.target) as client:
        with pytest.raises(DeadlineExceededError):
            client.predict(TEXT, timeout=0.05)
        held.set()


def test_server_that_comes_back():
    """A client outlives its server's restart."""
    server = FakeServer(PREDICTIONS)
    with server, Client(server.target) as client:
        client.model()
        server.__exit__()
        with pytest.raises(TwofoldError):
            client.model(timeout=0.2)
        server.__enter__()
        assert client.model().backbone == "fake"


def test_leaving_a_watch_stops_it(client, server):
    """Whoever stops iterating holds no stream open."""
    server.play_next(job_script(state=None))
    job = client.adapt(EXAMPLES, head="ner")

    events = client.watch(job)
    next(events)
    events.close()

    assert client.cancel(job).is_over


def test_threads_share_a_client(client):
    """Threads may use one client at the same time."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(client.predict(TEXT).label)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == ["statement"] * 8


def test_tasks_share_a_client(server):
    """Tasks may use one client at the same time, and a cancelled one harms no other."""

    async def main():
        async with AsyncClient(server.target, retry=FAST_RETRY) as client:
            tasks = [asyncio.create_task(client.predict(TEXT)) for _ in range(8)]
            tasks[3].cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            return [type(one).__name__ for one in found]

    assert asyncio.run(main()).count("Prediction") == 7


def test_repr_and_close(server):
    """The client says where it points and whether it is open, and refuses calls when it is not."""
    client = Client(server.target)
    assert repr(client) == f"<Client {server.target} open>"
    client.close()
    assert repr(client) == f"<Client {server.target} closed>"
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.model()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_unclosed(server, kind):
    """A client that nobody closed says so when it is collected."""
    client = kind(server.target)

    with pytest.warns(ResourceWarning, match=f"unclosed <{kind.__name__}"):
        del client


def test_refused_construction_does_not_warn():
    """A client that could not be made has nothing to close."""
    with pytest.raises(ValueError, match="not on this machine"):
        Client("elsewhere:1")
    gc.collect()

"""The whole server: start and stop."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack

import grpc
import pytest
from support import tiny_checkpoints
from support.running_server import config_of, gated, refusal, running, until
from twofold import Client, Health
from twofold.v1 import inference_pb2 as pb
from twofold.v1.inference_pb2_grpc import InferenceServiceStub
from twofold_checkpoint import checkpoint as files
from twofold_server.app import serve
from twofold_server.testing import free_port, serving

DAMAGE = {
    "truncated weights": lambda path: (path / files.GRAPH_WEIGHTS).write_bytes(b"short"),
    "no manifest": lambda path: (path / files.MANIFEST).unlink(),
    "all gone": lambda path: path.rename(path.with_name("elsewhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_current_checkpoint_falls_back_loudly(damage, store, caplog):
    """If current is damaged, the server serves previous and logs errors; promoting a good checkpoint repairs it."""
    store.promote("b")
    DAMAGE[damage](store.root / "checkpoints" / "b")

    async with running(store) as server:
        assert await server.is_serving()
        assert (await server.predict("rain")).checkpoint_id == "a"
    assert "serving the previous checkpoint" in [
        record.message for record in caplog.records if record.levelname == "ERROR"
    ]


async def test_nothing_that_can_serve_is_an_empty_store(store, caplog):
    """If current is damaged and there is no previous, the server starts without being ready, and says why."""
    DAMAGE["truncated weights"](store.root / "checkpoints" / "a")

    async with running(store) as server:
        assert not await server.is_serving()
        code, _ = await refusal(server.predict("rain"))
        assert code is grpc.StatusCode.UNAVAILABLE
    assert any("until one is promoted" in record.message for record in caplog.records)


async def test_a_damaged_alias_file_is_no_reason_to_die(store):
    """With an unreadable alias file, the server starts without being ready and can be repaired over the API."""
    (store.root / "aliases.json").write_text("{")

    async with running(store) as server:
        assert not await server.is_serving()


async def test_a_second_server_on_the_port_fails_loudly(store, tmp_path):
    """A second server on the same port fails to start."""
    async with running(store) as server:
        other_store = tiny_checkpoints.make_store(tmp_path / "other", "a")
        with pytest.raises(RuntimeError, match="bind"):
            async with serve(config_of(other_store, listen=server.target)):
                pass
        # Whatever had started by then is gone again: the other store can be served at once.
        async with running(other_store) as second:
            assert (await second.predict("rain")).checkpoint_id == "a"
        assert (await server.predict("rain")).checkpoint_id == "a"


async def test_draining_answers_calls_in_progress(store):
    """While the server drains, calls in progress are answered and new calls are rejected."""
    going = AsyncExitStack()
    server = await going.enter_async_context(serve(config_of(store)))
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub = InferenceServiceStub(channel)
        with gated() as gate:
            calls = [asyncio.ensure_future(ask(stub)) for _ in range(5)]
            await gate.wait_until_busy()
            await until(server.metrics_url, "twofold_requests_in_flight", 5, method="Predict")
            end = asyncio.create_task(going.aclose())
            assert await is_refused(stub)
            gate.open.set()
            assert [result.predictions[0].label for result in await asyncio.gather(*calls)] == ["a_weather"] * 5
            await end


async def is_refused(stub):
    """Call until the server rejects calls."""
    for _ in range(50):
        code, _ = await refusal(stub.Predict(pb.PredictRequest(texts=["rain"]), timeout=0.1))
        if code is grpc.StatusCode.UNAVAILABLE:
            return True
    return False


async def ask(stub, *texts):
    """Call Predict."""
    return await stub.Predict(pb.PredictRequest(texts=texts or ["rain"]))


async def test_sigterm_drains_a_real_process(store):
    """On SIGTERM calls in flight are answered, the exit code is 0, and every log line is a JSON object."""
    target, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [sys.executable, "-m", "twofold_server", "serve", "--store", str(store.root), "--listen", target]
    command += ["--metrics-listen", metrics, "--max-queue-tokens", "2000000"]

    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        async with grpc.aio.insecure_channel(target) as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
            stub = InferenceServiceStub(channel)
            calls = [asyncio.ensure_future(ask(stub, *["so much rain in new york " * 60] * 60)) for _ in range(4)]
            await until(f"http://{metrics}/metrics", "twofold_requests_in_flight", 4, method="Predict")
            child.send_signal(signal.SIGTERM)
            answered = [len(result.predictions) for result in await asyncio.gather(*calls)]
        _, log = await asyncio.wait_for(child.communicate(), 30)
    finally:
        if child.returncode is None:
            child.kill()

    assert answered == [60] * 4
    assert child.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [item["message"] for item in lines] == ["listening", "draining"]
    assert all({"time", "level", "message"} <= set(item) for item in lines)


def test_the_public_client_talks_to_the_real_server(store):
    """The public client gets answers from a real server, for a text and for a stream."""
    with serving(store.root) as server, Client(server.target) as client:
        assert client.health() is Health.SERVING
        [prediction] = client.predict(["rain in new york"])
        assert (prediction.label, prediction.entities[0].type) == ("a_weather", "a_place")
        assert list(client.predict_stream("rain in new york" for _ in range(70))) == [prediction] * 70


def test_a_server_that_cannot_start_logs_why(store):
    """If the port is in use, the exit code is 1 and one JSON line has the traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "twofold_server", "serve", "--store", str(store.root), "--listen", target]
        command += ["--metrics-listen", "127.0.0.1:0"]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False)

    assert ended.returncode == 1
    last = json.loads(ended.stderr.splitlines()[-1])
    assert last["message"] == "the server failed"
    assert target in last["traceback"]


def test_tiny_checkpoints_answer_as_documented():
    """The tiny checkpoints answer as their docstring says."""
    answer = tiny_checkpoints.answer("wake me next friday in new york")

    assert answer.labels[0].label == "a_alarm"
    assert [(e.start, e.end, e.type) for e in answer.entities] == [(8, 19, "a_date"), (23, 31, "a_place")]

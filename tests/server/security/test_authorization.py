"""Authorization over a real port: who is admitted, and what the others are told."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from support.running_server import refusal, running
from support.secured_server import Callers, Procedure, served
from twofold import AccessDeniedError, Client, OverloadedError
from twofold.v1 import inference_pb2 as pb
from twofold_server.api.servicers.open_inference import UNSUPPORTED
from twofold_server.security.authorization import REQUIRED_SCOPES

PREDICT = "/twofold.v1.InferenceService/Predict"
OIP = "/inference.GRPCInferenceService/"


@pytest.fixture
def callers(tmp_path):
    """A token for each scope, one for all of them, and their file."""
    made = Callers(tmp_path / "tokens.toml")
    for scope in ("predict", "adapt", "admin"):
        made.add(scope, scope)
    made.add("all", "predict", "adapt", "admin")
    return made


async def test_the_table_has_every_served_method(store):
    """Every served method, and every one that is rejected with advice, is in the table of required scopes."""
    async with running(store) as server:
        paths = {item.path for item in await served(server.channel)}
    assert paths | {OIP + name for name in UNSUPPORTED} == set(REQUIRED_SCOPES)


def allowed(need, caller):
    """Return the expected outcome of a call: OK or its status code."""
    if need == "open":
        return "in"
    if caller in ("nobody", "stranger"):
        return "UNAUTHENTICATED"
    return "in" if need in ("token", caller) or caller == "all" else "PERMISSION_DENIED"


@pytest.mark.parametrize("caller", ["nobody", "stranger", "predict", "adapt", "admin", "all"])
async def test_every_method_admits_its_scopes(caller, store, callers):
    """Each method is called without a token, with an unknown one and with one of each scope; the table decides."""
    unknown_callers = Callers(callers.path.with_name("others.toml"))
    unknown_callers.add("admin", "predict", "adapt", "admin")
    strangers = {"nobody": (), "stranger": unknown_callers.metadata("admin")}
    metadata = strangers[caller] if caller in strangers else callers.metadata(caller)

    async with running(store, tokens=callers.path) as server:
        procedures = await served(server.channel, callers.metadata("adapt"))
        assert len(procedures) > 25
        refused = [Procedure(OIP + name, False, False) for name in UNSUPPORTED if name != "ModelStreamInfer"]
        actual = {}
        for procedure in [*procedures, *refused]:
            actual[procedure.path], _ = await procedure.answer(server.channel, metadata=metadata)

    no = ("UNAUTHENTICATED", "PERMISSION_DENIED")
    assert {path: code if code in no else "in" for path, code in actual.items()} == {
        path: allowed(REQUIRED_SCOPES[path], caller) for path in actual
    }
    assert not {"INTERNAL", "UNKNOWN"} & set(actual.values())


async def test_without_a_file_everybody_is_let_in(store):
    """Without a token file every call is admitted, and tokens are not checked."""
    async with running(store) as server:
        for metadata in ((), (("authorization", "Bearer of.good.news"),)):
            answer = await server.inference.Predict(pb.PredictRequest(texts=["rain"]), metadata=metadata)
            assert answer.predictions[0].label == "a_weather"


HEADERS = [
    ((), "has no token; send metadata `authorization: Bearer TOKEN`"),
    ((("authorization", "Basic {predict}"),), "has no token"),
    ((("authorization", "{predict}"),), "has no token"),
    ((("x-token", "Bearer {predict}"),), "has no token"),
    ((("authorization", "Bearer "),), "is unknown or was revoked"),
    ((("authorization", "Bearer {predict}A"),), "is unknown or was revoked"),
    ((("authorization", "Bearer nobody"), ("authorization", "Bearer {predict}")), "is unknown"),
]


@pytest.mark.parametrize(("headers", "says"), HEADERS)
async def test_a_call_without_a_valid_token_is_unauthenticated(headers, says, store, callers):
    """UNAUTHENTICATED has a stable reason, repeats nothing of the token, and is counted."""
    metadata = tuple((key, value.format(**callers.tokens)) for key, value in headers)

    async with running(store, tokens=callers.path) as server:
        code, error = await refusal(server.inference.Predict(pb.PredictRequest(texts=["rain"]), metadata=metadata))
        counted = await server.metric("twofold_requests_total", method="Predict", code="UNAUTHENTICATED")
    assert (code, error.reason, counted) == (grpc.StatusCode.UNAUTHENTICATED, "NO_VALID_TOKEN", 1)
    assert says in error.message
    assert callers.tokens["predict"] not in error.message


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER  "])
async def test_the_scheme_may_be_written_in_any_case(scheme, store, callers):
    """The scheme `Bearer` is case-insensitive, as in HTTP."""
    metadata = (("authorization", f"{scheme} {callers.tokens['predict']}"),)

    async with running(store, tokens=callers.path) as server:
        await server.inference.Predict(pb.PredictRequest(texts=["rain"]), metadata=metadata)


async def test_a_missing_scope_is_named(store, callers):
    """PERMISSION_DENIED names the token, its scopes and the required one."""
    async with running(store, tokens=callers.path) as server:
        rolling = Procedure("/twofold.v1.CheckpointService/RollBack", False, False)
        code, error = await rolling.answer(server.channel, metadata=callers.metadata("predict"))

    assert (code, error.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
    assert "token 'predict' has scope predict, but this call needs 'admin'" in error.message


async def test_a_refused_request_is_not_read(store, callers):
    """A request without permission is rejected before its bytes are read."""
    async with running(store, tokens=callers.path) as server:
        predict = Procedure(PREDICT, False, False)
        assert (await predict.answer(server.channel, b"\xff\xff"))[0] == "UNAUTHENTICATED"
        known = callers.metadata("predict")
        assert (await predict.answer(server.channel, b"\xff\xff", metadata=known))[0] == "INVALID_ARGUMENT"


async def until_code(predict, server, expected, metadata):
    """Call until the status code is the expected one; fail after a minute."""
    for _ in range(600):
        if (await predict.answer(server.channel, metadata=metadata))[0] == expected:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the code did not become {expected}")


async def test_the_file_is_read_again_when_it_changes(store, callers, caplog):
    """Added lines are admitted, removed lines are not, and an invalid file changes nothing, all without a restart."""
    predict = Procedure(PREDICT, False, False)

    async with running(store, tokens=callers.path) as server:
        callers.add("new", "predict")
        await until_code(predict, server, "INVALID_ARGUMENT", callers.metadata("new"))

        del callers.lines["predict"]
        callers.write()
        await until_code(predict, server, "UNAUTHENTICATED", callers.metadata("predict"))

        callers.write("new = {")
        await asyncio.sleep(1.1)
        await until_code(predict, server, "INVALID_ARGUMENT", callers.metadata("new"))
        assert "token file is invalid; the previous tokens stay in force" in caplog.messages

        callers.path.unlink()
        await asyncio.sleep(1.1)
        await until_code(predict, server, "INVALID_ARGUMENT", callers.metadata("new"))

        callers.write("")
        await until_code(predict, server, "UNAUTHENTICATED", callers.metadata("new"))


@pytest.mark.parametrize("text", ["new = {", None])
async def test_a_server_does_not_start_with_a_wrong_file(text, store, callers):
    """With an invalid token file the server does not start."""
    callers.path.unlink() if text is None else callers.write(text)

    with pytest.raises((OSError, ValueError), match=r"tokens\.toml"):
        async with running(store, tokens=callers.path):
            pass


async def test_a_token_has_its_rate(store, callers):
    """Above its rate a token gets RESOURCE_EXHAUSTED with a retry delay; other tokens are unaffected."""
    callers.add("slow", "predict", rate=0.001)
    predict = Procedure(PREDICT, False, False)

    async with running(store, tokens=callers.path) as server:
        assert (await predict.answer(server.channel, metadata=callers.metadata("slow")))[0] == "INVALID_ARGUMENT"
        code, error = await predict.answer(server.channel, metadata=callers.metadata("slow"))
        assert (code, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert 900 < error.retry_after <= 1000
        assert "token 'slow' is limited to 0.001 requests per second" in error.message
        assert await server.metric("twofold_shed_total", reason="rate") == 1
        others = [await predict.answer(server.channel, metadata=callers.metadata("all")) for _ in range(20)]
        assert {code for code, _ in others} == {"INVALID_ARGUMENT"}


async def test_reloading_tokens_keeps_their_rate_limits(store, callers):
    """Reloading the file does not reset the rate limit of an unchanged token."""
    callers.add("slow", "predict", rate=0.001)
    predict = Procedure(PREDICT, False, False)

    async with running(store, tokens=callers.path) as server:
        slow = callers.metadata("slow")
        assert (await predict.answer(server.channel, metadata=slow))[0] == "INVALID_ARGUMENT"
        callers.add("new", "predict")
        await until_code(predict, server, "INVALID_ARGUMENT", callers.metadata("new"))
        assert (await predict.answer(server.channel, metadata=slow))[0] == "RESOURCE_EXHAUSTED"


async def test_the_requests_of_a_stream_wait_for_their_turn(store, callers):
    """A stream above its rate is slowed down, and every request is answered in order."""
    callers.add("slow", "predict", rate=10)
    requests = [pb.PredictStreamRequest(request=pb.PredictRequest(texts=["rain"]))] * 14

    async with running(store, tokens=callers.path) as server:
        started_at = time.monotonic()
        call = server.inference.PredictStream(iter(requests), metadata=callers.metadata("slow"))
        answers = [item.response.predictions[0].label async for item in call]
        seconds = time.monotonic() - started_at

    assert answers == ["a_weather"] * 14
    assert seconds > 0.35  # Ten come at once, the four others a tenth of a second apart.


async def test_the_client_shows_its_token_and_waits_for_its_rate(store, callers):
    """Client(token=...) is admitted, retries after the delay, and otherwise raises the right error."""
    callers.add("slow", "predict", rate=2)
    callers.add("slower", "predict", rate=0.001)

    def story(target):
        with Client(target, token=callers.tokens["slow"]) as client:
            assert [client.predict("rain").label for _ in range(4)] == ["a_weather"] * 4
            with pytest.raises(AccessDeniedError, match="needs 'admin'"):
                client.roll_back()
        with Client(target) as client, pytest.raises(AccessDeniedError, match="no token"):
            client.predict("rain")
        with Client(target, token=callers.tokens["slower"]) as client:
            client.predict("rain")
            with pytest.raises(OverloadedError) as caught:
                client.predict("rain")
            assert (caught.value.reason, caught.value.retry_after > 900) == ("RATE_LIMITED", True)

    async with running(store, tokens=callers.path) as server:
        await asyncio.to_thread(story, server.target)

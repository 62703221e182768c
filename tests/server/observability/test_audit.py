"""Audit lines: who did what, without any text of callers."""

from __future__ import annotations

import json
import logging

import grpc
import pytest
import trustme
from support import tiny_checkpoints
from support.running_server import config_of, running
from support.scripted_trainer import HANG, Harness
from support.secured_server import Callers, Procedure
from twofold.open_inference import open_inference_pb2
from twofold.v1 import adaptation_pb2, checkpoints_pb2
from twofold_server.app import serve
from twofold_server.observability.audit import AUDITED
from twofold_server.observability.logs import JsonFormatter
from twofold_server.security.authorization import REQUIRED_SCOPES

SECRET = "my card is 4111 1111"
EXAMPLES = [
    adaptation_pb2.Example(text=SECRET, label="a_weather"),
    adaptation_pb2.Example(text="rain", label="a_weather"),
]


def adapt(*examples):
    """Return a request that adapts to examples."""
    return adaptation_pb2.AdaptRequest(
        head="HEAD_CLASSIFIER", dataset={"inline": {"train": examples}}, promote="PROMOTE_POLICY_NEVER"
    )


def lines_of(caplog):
    """Return the audit lines as they are written, without time, level and logger."""
    written = [
        json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "twofold_server.audit"
    ]
    assert all(line["level"] == "info" for line in written)
    return [{key: line[key] for key in line if key not in ("time", "level", "logger")} for line in written]


async def call(channel, path, request, **arguments):
    """Call a method, and return the name of its status code."""
    code, _ = await Procedure(path, False, False).answer(channel, request.SerializeToString(), **arguments)
    return code


def test_what_changes_things_is_audited():
    """Every method with the scope admin, and those that start and end a job, write an audit line; others do not."""
    admin = {path for path, need in REQUIRED_SCOPES.items() if need == "admin"}
    jobs = {f"/twofold.v1.AdaptationService/{name}" for name in ("Adapt", "CancelJob")}

    assert set(AUDITED) == admin | jobs


ADAPT, CANCEL = (f"/twofold.v1.AdaptationService/{name}" for name in ("Adapt", "CancelJob"))
PROMOTE, ROLL_BACK, DELETE = (
    f"/twofold.v1.CheckpointService/{name}" for name in ("PromoteCheckpoint", "RollBack", "DeleteCheckpoint")
)
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"


def promote(name):
    """Return a promotion request."""
    return checkpoints_pb2.PromoteCheckpointRequest(checkpoint=name)


def delete(name):
    """Return a deletion request."""
    return checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=name)


BACK = checkpoints_pb2.RollBackRequest()
B = {"checkpoint": "b"}
STORY = [
    (ROLL_BACK, BACK, "roll back", "FAILED_PRECONDITION", {"reason": "WRONG_STATE"}),
    (PROMOTE, promote("b"), "promote", "OK", B),
    (ROLL_BACK, BACK, "roll back", "OK", {"checkpoint": "a"}),
    (DELETE, delete("b"), "delete", "FAILED_PRECONDITION", {**B, "reason": "CHECKPOINT_IN_USE"}),
    (DELETE, delete("c"), "delete", "OK", {"checkpoint": "c"}),
    (PROMOTE, promote("c"), "promote", "NOT_FOUND", {"checkpoint": "c", "reason": "CHECKPOINT_NOT_FOUND"}),
    (PROMOTE, promote(SECRET), "promote", "NOT_FOUND", {"checkpoint": "(invalid id)", "reason": "CHECKPOINT_NOT_FOUND"}),
    (PROMOTE, promote(""), "promote", "INVALID_ARGUMENT", {"reason": "INVALID_REQUEST"}),
    (CANCEL, adaptation_pb2.CancelJobRequest(job_id=SECRET), "cancel", "NOT_FOUND", {"job": "(invalid id)", "reason": "UNKNOWN_NAME"}),
    (ADAPT, adaptation_pb2.AdaptRequest(head="HEAD_NER", dataset={"upload_id": SECRET}), "adapt", "NOT_FOUND", {"reason": "UNKNOWN_NAME"}),
]  # fmt: skip


@pytest.fixture
def harness(tmp_path, store):
    """A store whose jobs run until they are cancelled."""
    made = Harness(tmp_path)
    made.play(HANG)
    return made


async def test_each_call_leaves_one_line_whatever_its_outcome(store, harness, caplog):
    """Each call writes one line with caller, action, object and outcome, but no text of the caller."""
    caplog.set_level(logging.INFO)
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag="c"))

    async with running(store, trainer_python=harness.config.trainer.python) as server:
        for path, request, _, code, _ in STORY:
            assert await call(server.channel, path, request) == code
        load = open_inference_pb2.RepositoryModelLoadRequest(model_name="twofold")
        load.parameters["version"].string_param = "b"
        assert await call(server.channel, LOAD, load) == "OK"
        answer = await server.channel.unary_unary(ADAPT)(adapt(*EXAMPLES).SerializeToString())
        job = adaptation_pb2.AdaptResponse.FromString(answer).job.id
        assert await call(server.channel, CANCEL, adaptation_pb2.CancelJobRequest(job_id=job)) == "OK"

    expected = [{"message": what, "outcome": code, **about} for _, _, what, code, about in STORY]
    expected += [
        {"message": "promote", "outcome": "OK", **B},
        {"message": "adapt", "outcome": "OK", "job": job, **B},
        {"message": "cancel", "outcome": "OK", "job": job},
    ]
    actual = lines_of(caplog)
    assert actual == [{"actor": "anonymous", **line} for line in expected]
    assert "4111" not in str(actual)


async def test_who_is_the_token_also_where_it_is_refused(store, tmp_path, caplog):
    """A line names the token, also of a rejected call; without a known token the caller is anonymous."""
    caplog.set_level(logging.INFO)
    callers = Callers(tmp_path / "tokens.toml")
    callers.add("operator", "admin")
    callers.add("checkout", "predict")

    async with running(store, tokens=callers.path) as server:
        for name in ("operator", "checkout"):
            await call(server.channel, PROMOTE, promote("b"), metadata=callers.metadata(name))
        await call(server.channel, PROMOTE, promote("b"))

    assert lines_of(caplog) == [
        {"message": "promote", "actor": "operator", "outcome": "OK", "checkpoint": "b"},
        {"message": "promote", "actor": "checkout", "outcome": "PERMISSION_DENIED", "reason": "SCOPE_MISSING"},
        {"message": "promote", "actor": "anonymous", "outcome": "UNAUTHENTICATED", "reason": "NO_VALID_TOKEN"},
    ]


@pytest.mark.parametrize("token", [False, True])
async def test_who_is_the_subject_of_a_certificate_where_there_is_no_token(token, store, tmp_path, caplog):
    """With mutual TLS a line names the certificate's subject, unless there is a token."""
    caplog.set_level(logging.INFO)
    authority = trustme.CA()
    mine = authority.issue_cert("localhost")
    mine.private_key_pem.write_to_path(tmp_path / "key.pem")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    theirs = authority.issue_cert(
        "caller", common_name="billing", organization_name="Acme", organization_unit_name="EU"
    )
    callers = Callers(tmp_path / "tokens.toml")
    callers.add("operator", "admin")
    settings = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    settings |= {"tls_client_ca": tmp_path / "ca.pem"} | ({"tokens": callers.path} if token else {})
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(), theirs.private_key_pem.bytes(), theirs.cert_chain_pems[0].bytes()
    )

    async with serve(config_of(store, **settings)) as server:
        target = server.target.replace("127.0.0.1", "localhost")
        async with grpc.aio.secure_channel(target, credentials) as channel:
            metadata = callers.metadata("operator") if token else ()
            assert await call(channel, PROMOTE, promote("b"), metadata=metadata) == "OK"

    [line] = lines_of(caplog)
    assert line["actor"] == ("operator" if token else "CN=billing,OU=EU,O=Acme")

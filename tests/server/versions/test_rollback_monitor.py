"""A bad checkpoint that passed every check is rolled back automatically, under load."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from unittest import mock

import pytest
from support import tiny_checkpoints
from support.live_traffic import TEXTS, WATCH, adapt, harness_of, promote, traffic, undone, until
from support.running_server import running
from twofold.v1 import adaptation_pb2, checkpoints_pb2
from twofold.v1.adaptation_pb2_grpc import AdaptationServiceStub
from twofold_server.inference.engine import Engine

pytestmark = pytest.mark.slow


async def test_a_planted_checkpoint_is_rolled_back_by_itself(tmp_path, caplog):
    """A checkpoint that passes gate and golden texts but fails on live texts is rolled back within the window, without a lost request.

    Metrics, the job's events and reports, the alias changes and the audit log show it.
    """
    caplog.set_level("INFO", "twofold_server.audit")
    store, harness = harness_of(tmp_path, tiny_checkpoints.Recipe(forgets=("sunny", "cold")))

    async with running(store, trainer_python=harness.config.trainer.python, **WATCH) as server:
        jobs = AdaptationServiceStub(server.channel)
        async with traffic(server) as (answered, failed):
            job = await adapt(server)
            await undone(server, "agreement")
            assert (await server.predict("sunny")).predictions[0].label == "a_weather"

            async def is_told():
                return (await jobs.GetJob(adaptation_pb2.GetJobRequest(job_id=job))).job.report.rollback_reason

            await until(is_told, "the job is told")
        assert failed == []
        assert set(answered) == {"a", "bad"}
        assert answered[-1] == "a"
        await until(lambda: one_engine(server), "one engine")
        assert await server.metric("twofold_shadow_answers_total", head="classifier", outcome="differed") >= 20
        events = [
            item.event async for item in jobs.WatchJob(adaptation_pb2.WatchJobRequest(job_id=job, after_sequence=0))
        ]
        answer = await jobs.GetReport(adaptation_pb2.GetReportRequest(job_id=job, format="REPORT_FORMAT_JSON"))
        report = json.loads(answer.content)
        changes = (await server.checkpoints.ListAliasChanges(checkpoints_pb2.ListAliasChangesRequest())).changes

    assert events[-1].warning
    assert "bad was rolled back: the classifier head agrees on 0 of" in events[-1].message
    assert "a is live again." in events[-1].message
    assert events[-1].message in [note["message"] for note in report["notes"]]
    moved = [
        (change.alias, change.from_id, change.to_id, change.actor)
        for change in reversed(changes)
        if change.alias == "current"
    ]
    assert moved[1:] == [("current", "a", "bad", job), ("current", "bad", "a", "server")]
    assert changes[0].reason.startswith("bad was rolled back: the classifier head agrees on 0 of")
    assert (store.aliases().current, store.aliases().previous) == ("a", None)
    [line] = [record for record in caplog.records if record.name == "twofold_server.audit" and record.actor == "server"]
    assert (line.message, line.checkpoint, line.reason) == ("roll back", "a", "agreement")


async def one_engine(server):
    """Return whether exactly one engine is in memory."""
    return await server.metric("twofold_engines") == 1


BAD = [
    (tiny_checkpoints.Recipe(breaks=("sunny", "cold")), TEXTS, "errors"),
    (tiny_checkpoints.Recipe(lacks_last_piece=True), ("sunny!", "cold!"), "errors"),
]


@pytest.mark.parametrize(("recipe", "texts", "cause"), BAD, ids=["not finite", "fails"])
async def test_errors_roll_back_a_job_s_checkpoint(tmp_path, recipe, texts, cause):
    """If a job's checkpoint gives NaN or failing passes on live texts, the previous one is restored."""
    store, harness = harness_of(tmp_path, recipe)

    async with running(store, trainer_python=harness.config.trainer.python, **WATCH) as server:
        async with traffic(server, texts):
            await adapt(server)
            await undone(server, cause)
        assert (await server.predict(*texts)).checkpoint_id == "a"


@contextmanager
def slow(checkpoint_id):
    """Slow each pass of a checkpoint down by 20 ms."""
    run = Engine.run

    def slowed(engine, *arguments):
        if engine.id == checkpoint_id:
            time.sleep(0.02)
        return run(engine, *arguments)

    with mock.patch.object(Engine, "run", slowed):
        yield


async def test_slowness_rolls_back_a_job_s_checkpoint(tmp_path):
    """If a job's checkpoint takes many times as long per text, the previous one is restored."""
    store, harness = harness_of(tmp_path, tiny_checkpoints.Recipe())

    with slow("bad"):
        async with (
            running(store, trainer_python=harness.config.trainer.python, **WATCH) as server,
            traffic(server),
        ):
            await adapt(server)
            await undone(server, "latency")


async def test_a_person_s_checkpoint_is_rolled_back_for_errors_only(tmp_path):
    """A checkpoint that a person promoted is rolled back for errors only; other answers are compared but decide nothing."""
    store = tiny_checkpoints.make_store(tmp_path / "store", "a")
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(forgets=("sunny", "cold")), name="other")
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(lacks_last_piece=True), name="bad")

    async with running(store, **WATCH) as server:
        await promote(server, "other")
        async with traffic(server):

            async def compared():
                return await server.metric("twofold_shadow_texts_total", outcome="compared") > 200

            await until(compared, "200 texts compared")
            assert (await server.predict("sunny")).checkpoint_id == "other"
        await promote(server, "bad")
        async with traffic(server, ("sunny!",)):
            await undone(server, "errors")
        assert (await server.predict("sunny!")).checkpoint_id == "other"


async def test_a_good_swap_releases_the_standby_engine(tmp_path):
    """After the window the previous checkpoint leaves memory; a rollback within it loads nothing."""
    store = tiny_checkpoints.make_store(tmp_path / "store", "a")
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(), name="b")

    async with running(store, **{**WATCH, "rollback_seconds": 1}) as server, traffic(server):
        await promote(server, "b")
        await until(lambda: one_engine(server), "the window is over")
        assert (await server.predict("sunny")).checkpoint_id == "b"
        assert await server.metric("twofold_standby_engines") == 0
    async with running(store, **WATCH) as server:
        await promote(server, "a")
        assert await server.metric("twofold_standby_engines") == 1
        with mock.patch("twofold_server.versions.promoter.load_engine", side_effect=AssertionError):
            await server.checkpoints.RollBack(checkpoints_pb2.RollBackRequest())
        assert (await server.predict("sunny")).checkpoint_id == "b"
        await until(lambda: one_engine(server), "who rolls back is not watched")


async def test_a_new_swap_ends_the_window_of_the_last(tmp_path):
    """There are never more than two engines, however fast swaps follow each other, and one if monitoring is off."""
    store = tiny_checkpoints.make_store(tmp_path / "store", "a", "b", "c")

    async with running(store, **WATCH) as server, traffic(server, callers=1):
        for name in "bcabca":
            await promote(server, name)
            assert await server.metric("twofold_engines") <= 2
    for off in ({"rollback_seconds": 0}, {"rollback_share": 0}):
        async with running(store, **{**WATCH, **off}) as server:
            await promote(server, "b" if store.aliases().current == "a" else "a")
            assert await server.metric("twofold_standby_engines") == 0


async def test_without_the_one_before_in_memory_it_is_loaded(tmp_path):
    """With a share of 0 nothing is compared and no engine is on standby, but a failing checkpoint is still rolled back."""
    store, harness = harness_of(tmp_path, tiny_checkpoints.Recipe(lacks_last_piece=True))

    settings = {**WATCH, "rollback_share": 0}
    async with running(store, trainer_python=harness.config.trainer.python, **settings) as server:
        async with traffic(server, ("sunny!",)):
            await adapt(server)
            await undone(server, "errors")
        assert await server.metric("twofold_shadow_texts_total", outcome="compared") == 0

"""Shadow tests: a candidate answers live texts, its answers are not returned, and they decide whether it goes live."""

from __future__ import annotations

import json
import re
import threading
from contextlib import asynccontextmanager

import pytest
from support import tiny_checkpoints
from support.live_traffic import TEXTS, follow, harness_of, job_of, promote, submit, traffic, until
from support.running_server import refusal, running
from twofold.v1 import adaptation_pb2 as pb
from twofold.v1.adaptation_pb2_grpc import AdaptationServiceStub
from twofold_server.errors import DatabaseError
from twofold_server.inference.engine import Engine
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.metrics import Metrics
from twofold_server.versions import shadow_test as shadow_test_module
from twofold_server.versions import shadow_traffic as shadows
from twofold_server.versions.events import Shadowed
from twofold_server.versions.shadow_traffic import EnginePair, ShadowTraffic

pytestmark = pytest.mark.slow

SHADOW = {
    "shadow_share": 1.0,
    "shadow_texts": 60,
    "shadow_seconds": 120,
    "rollback_seconds": 0,
    "rollback_min_samples": 20,
}

MANY = 300
"""Texts for which a candidate takes several looks, however fast the machine."""


@asynccontextmanager
async def in_shadow(tmp_path, recipe, **settings):
    """Run a server whose job's candidate, "bad", follows a recipe; yield the server and its store."""
    store, harness = harness_of(tmp_path, recipe)
    async with running(store, trainer_python=harness.config.trainer.python, **{**SHADOW, **settings}) as server:
        yield server, store


async def started_at(server, job):
    """Wait until the candidate is on standby."""

    async def stands_by():
        assert (await job_of(server, job)).state in {pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING}
        return await server.metric("twofold_standby_engines") == 1

    await until(stands_by, "a candidate in shadow")


async def test_a_good_candidate_is_made_live_after_its_texts(tmp_path):
    """The promotion waits until enough texts were compared, uses the loaded engine, and the report has the agreement of both heads."""
    async with in_shadow(tmp_path, tiny_checkpoints.Recipe()) as (server, store):
        async with traffic(server) as (answered, failed):
            job = await follow(server, await submit(server))
            before = set(answered)
            assert (await server.predict("sunny")).checkpoint_id == "bad"
        assert failed == []
        assert "a" in before
        assert (job.state, [phase.phase for phase in job.phases]) == (
            pb.JOB_STATE_SUCCEEDED,
            ["train", "shadow", "swap"],
        )
        seen = job.report.shadow
        assert seen.texts >= 60
        assert seen.failed == 0
        assert seen.slow < seen.texts / 10  # Other tests keep the machine busy.
        assert seen.classifier.agreed == seen.classifier.texts == seen.texts
        assert 0 < seen.ner.agreed == seen.ner.texts < seen.texts
        assert store.aliases().current == "bad"
        assert await server.metric("twofold_engines") == 1


async def test_progress_events_report_compared_texts(tmp_path, monkeypatch):
    """Progress events report the compared texts; the report has only the final numbers."""
    monkeypatch.setattr(shadow_test_module, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(shadow_test_module, "_POLL_SECONDS", 0.01)

    async with in_shadow(tmp_path, tiny_checkpoints.Recipe(), shadow_texts=MANY) as (server, _):
        async with traffic(server):
            job = await submit(server)
            stub = AdaptationServiceStub(server.channel)
            heard = [event async for event in stub.WatchJob(pb.WatchJobRequest(job_id=job))]
        progress = [item.event.message for item in heard if "Shadow test:" in item.event.message]
        texts = [int(re.search(r"Shadow test: (\d+) live", item)[1]) for item in progress]
        assert len(texts) > 2
        assert texts == sorted(texts)
        assert texts[0] < MANY <= texts[-1]
        report = await stub.GetReport(pb.GetReportRequest(job_id=job, format=pb.REPORT_FORMAT_JSON))
        notes = [note["message"] for note in json.loads(report.content)["notes"] if "Shadow test:" in note["message"]]
        assert notes == [progress[-1]]


async def test_an_unwritable_progress_event_is_ignored(tmp_path, monkeypatch):
    """If a progress event cannot be written, the job continues."""
    monkeypatch.setattr(shadow_test_module, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(shadow_test_module, "_POLL_SECONDS", 0.01)
    say, refused = JobRepository.append_event, []

    async def sometimes(jobs, job, event):
        if isinstance(event, Shadowed) and len(refused) < 2:
            refused.append(event)
            raise DatabaseError("away")
        return await say(jobs, job, event)

    monkeypatch.setattr(JobRepository, "append_event", sometimes)

    async with in_shadow(tmp_path, tiny_checkpoints.Recipe(), shadow_texts=MANY) as (server, store):
        async with traffic(server):
            job = await follow(server, await submit(server))
        assert len(refused) == 2
        assert job.state == pb.JOB_STATE_SUCCEEDED
        assert job.report.shadow.texts >= MANY
        assert store.aliases().current == "bad"


async def test_a_bad_candidate_is_rejected_and_never_answers(tmp_path):
    """A candidate that passed the gate but not the shadow test is REJECTED with a reason, and no caller saw its answers."""
    async with in_shadow(tmp_path, tiny_checkpoints.Recipe(forgets=("sunny", "cold"))) as (server, store):
        async with traffic(server) as (answered, failed):
            job = await follow(server, await submit(server))
        assert (failed, set(answered)) == ([], {"a"})
        assert job.state == pb.JOB_STATE_REJECTED
        assert "bad passed the gate but failed the shadow test: the classifier head agrees on 0 of" in job.reason
        assert job.reason.endswith("(minimum 40%); the old checkpoint stays live.")
        assert job.report.shadow.classifier.agreed == 0
        assert (store.aliases().current, store.aliases().candidate) == ("a", "bad")
        assert await server.metric("twofold_engines") == 1


async def test_without_live_texts_the_time_decides(tmp_path):
    """Without live texts the candidate goes live after the time limit, with a warning that nothing was compared."""
    async with in_shadow(tmp_path, tiny_checkpoints.Recipe(), shadow_seconds=0.5) as (server, _):
        job = await follow(server, await submit(server))
        assert job.state == pb.JOB_STATE_SUCCEEDED
        assert "Compared only 0 live texts in the shadow test; a decision needs at least 20." in job.report.notes


@pytest.mark.parametrize(("requested", "set_to", "phases"), [
    (None, 0.0, ["train", "swap"]),
    (0.0, 1.0, ["train", "swap"]),
    (1.0, 0.0, ["train", "shadow", "swap"]),
])  # fmt: skip
async def test_a_job_may_ask_for_another_share(tmp_path, requested, set_to, phases):
    """The share of the request takes precedence over the server's setting, including 0."""
    async with in_shadow(tmp_path, tiny_checkpoints.Recipe(), shadow_share=set_to, shadow_seconds=0.2) as (server, _):
        job = await follow(server, await submit(server, shadow_share=requested))
        assert [phase.phase for phase in job.phases] == phases


async def test_a_wrong_share_is_refused(tmp_path):
    """INVALID_ARGUMENT names the field and the value."""
    async with in_shadow(tmp_path, tiny_checkpoints.Recipe()) as (server, _):
        _, error = await refusal(submit(server, shadow_share=1.5))
        assert [(violation.field, violation.description[:24]) for violation in error.violations] == [
            ("shadow_share", "1.5 must be from 0 to 1;")
        ]


async def test_a_job_in_shadow_can_be_cancelled(tmp_path):
    """CancelJob ends the shadow test at once, the candidate leaves memory, and the old checkpoint stays live."""
    async with in_shadow(tmp_path, tiny_checkpoints.Recipe()) as (server, store):
        job = await submit(server)
        await started_at(server, job)
        jobs = AdaptationServiceStub(server.channel)
        cancelled = (await jobs.CancelJob(pb.CancelJobRequest(job_id=job))).job
        assert cancelled.state == pb.JOB_STATE_CANCELLED
        assert await server.metric("twofold_engines") == 1
        assert store.aliases().current == "a"


@pytest.mark.parametrize(("name", "state"), [("other", pb.JOB_STATE_FAILED), ("candidate", pb.JOB_STATE_SUCCEEDED)])
async def test_a_promotion_by_a_person_ends_the_shadow_test(tmp_path, name, state):
    """If a person promotes another checkpoint meanwhile, the shadow test ends, and the candidate is not promoted automatically."""
    async with in_shadow(tmp_path, tiny_checkpoints.Recipe()) as (server, store):
        tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(), name="other")
        job = await submit(server)
        await started_at(server, job)
        done = await promote(server, name)
        ended = await follow(server, job)
        assert ended.state == state
        assert state == pb.JOB_STATE_SUCCEEDED or "current checkpoint changed from a to other" in ended.reason
        assert (await server.predict("sunny")).checkpoint_id == done.checkpoint.id
        assert await server.metric("twofold_engines") == 1


async def test_a_server_that_stops_does_not_wait_for_the_shadow(tmp_path):
    """If the server stops, the job waits, and after the restart the same candidate is tested again without training."""
    store, harness = harness_of(tmp_path, tiny_checkpoints.Recipe())

    async with running(store, trainer_python=harness.config.trainer.python, **SHADOW) as server:
        job = await submit(server)
        await started_at(server, job)
    assert (store.aliases().current, store.aliases().candidate) == ("a", "bad")
    again = {**SHADOW, "shadow_seconds": 0.1}
    async with running(store, trainer_python=harness.config.trainer.python, **again) as server:
        ended = await follow(server, job)
        assert (ended.state, ended.reason.split(",")[0]) == (pb.JOB_STATE_SUCCEEDED, "Published bad")
        assert [phase.phase for phase in ended.phases].count("shadow") == 2
    assert store.aliases().current == "bad"


@pytest.fixture
def pair(store):
    """Two engines with the same answers."""
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(), name="same")
    engines = [Engine(store.get(name)) for name in ("a", "same")]
    yield EnginePair(*engines, slowdown=3.0)
    for engine in engines:
        engine.close()


def counted(metrics):
    """Return the number of texts by outcome."""
    outcomes = ("compared", "failed", "dropped")
    return [
        metrics.registry.get_sample_value("twofold_shadow_texts_total", {"outcome": outcome}) for outcome in outcomes
    ]


def test_live_texts_come_first(pair, monkeypatch):
    """While live texts wait nothing is compared; queued texts that wait too long or exceed the limit are dropped and counted."""
    monkeypatch.setattr(shadows, "_MAX_QUEUE_SECONDS", 0.05)
    metrics, seen, quiet = Metrics(), [], threading.Event()
    shadow = ShadowTraffic(metrics, lambda: not quiet.is_set(), max_tokens=128)
    shadow.sample(TEXTS)
    shadow.begin(pair, 1.0, seen.append)
    shadow.sample(["sunny"] * 100)
    while sum(counted(metrics)) < 100:
        assert not seen
        threading.Event().wait(0.01)
    assert counted(metrics) == [0, 0, 100]

    monkeypatch.setattr(shadows, "_MAX_QUEUE_SECONDS", 60.0)
    quiet.set()
    shadow.sample(TEXTS)
    while len(seen) < len(TEXTS):
        threading.Event().wait(0.01)
    shadow.end()
    shadow.sample(TEXTS)
    assert counted(metrics) == [4, 0, 100]
    assert all(item.agrees["classifier"] and not item.slow and not item.failed for item in seen)


def test_a_share_is_taken(pair):
    """About the configured share of many texts is compared."""
    metrics, seen = Metrics(), []
    shadow = ShadowTraffic(metrics, lambda: False, max_tokens=128)
    shadow.begin(pair, 0.2, seen.append)
    for _ in range(1000):
        shadow.sample(["sunny"])
        while len(shadow._queue) > 8:
            threading.Event().wait(0.001)
    shadow.end()

    assert 120 < sum(counted(metrics)) + len(shadow._queue) < 290

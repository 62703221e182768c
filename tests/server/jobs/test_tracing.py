"""Traces of jobs: linked to the call, and exported at the end by whichever server ends them."""

from __future__ import annotations

import itertools

import pytest
from opentelemetry.trace import StatusCode
from support.live_traffic import follow, harness_of, submit
from support.running_server import running
from support.scripted_trainer import HANG, INLINE, SPEC, TRAIN, Harness, finish, runs, say, until
from support.span_tree import Caller, Recording, key
from support.tiny_checkpoints import Recipe
from twofold import AsyncClient, Example
from twofold_checkpoint.protocol.events import GateEvaluated, PhaseStarted, Published
from twofold_server.jobs.tracing import job_span

ADAPT = "twofold.v1.AdaptationService/Adapt"
PLAIN = {"rollback_seconds": 0.0}


async def test_a_job_that_was_promoted(tmp_path):
    """A job's span links to the call, and has children for its wait, the trainer's phases and the swap."""
    store, harness = harness_of(tmp_path, Recipe(tag="b"))
    recording, caller = Recording(), Caller()
    judged = say(GateEvaluated(verdict="pass", reason="It is better."))
    phases = [say(PhaseStarted(phase=name)) for name in ("validate", "train", "gate")]
    harness.play(*phases, judged, say(Published(checkpoint_id="bad")), finish("succeeded", "Published bad."))

    settings = {"trainer_python": harness.config.trainer.python, **PLAIN}
    async with running(store, recording.tracer, **settings) as server, AsyncClient(server.target) as client:
        with caller.span("nightly"):
            job = await client.adapt([Example(text="sunny", label="a_weather")] * 4, head="classifier")
        await follow(server, job.id)
        job_id = job.id
    tree = recording.tree
    (own,) = caller.exporter.get_finished_spans()
    job, call = tree.single("job"), tree.single(ADAPT)

    assert key(call.parent) == key(own.context)
    assert [key(link.context) for link in job.links] == [key(call.context)]
    assert job.parent is None
    assert call.attributes["twofold.job.id"] == job_id
    assert dict(job.attributes) == {
        "twofold.job.id": job_id,
        "twofold.job.state": "succeeded",
        "twofold.job.head": "classifier",
        "twofold.job.freeze": "auto",
        "twofold.job.base": "a",
        "twofold.job.candidate": "bad",
        "twofold.job.verdict": "pass",
    }
    below = tree.below(job)
    assert [span.name for span in below] == ["wait", "validate", "train", "gate", "swap"]
    for earlier, later in itertools.pairwise(below):
        assert job.start_time <= earlier.start_time <= earlier.end_time <= later.start_time
    assert below[-1].end_time <= job.end_time
    assert job.status.status_code is StatusCode.UNSET


ENDINGS = [
    ("rejected", "the text was secretword", StatusCode.UNSET),
    ("failed", "the text was secretword", StatusCode.ERROR),
]


@pytest.mark.parametrize(("outcome", "reason", "status"), ENDINGS)
async def test_other_endings(tmp_path, outcome, reason, status):
    """A failed job's span has an error status, a rejected one has not; neither contains the reason, which may quote a text.

    Jobs are few, so they are recorded whatever the share of traced calls is.
    """
    store, harness = harness_of(tmp_path, Recipe(tag="b"))
    harness.play(TRAIN, finish(outcome, reason))
    recording = Recording(share=0.0)

    async with running(store, recording.tracer, trainer_python=harness.config.trainer.python) as server:
        await follow(server, await submit(server))
    job = recording.tree.single("job")

    assert (job.attributes["twofold.job.state"], job.status.status_code) == (outcome, status)
    assert [span.name for span in recording.tree.below(job)] == ["wait", "train"]
    assert not recording.tree.calls()
    assert not any("secretword" in span.to_json() for span in recording.tree.spans)


async def test_a_job_that_another_server_ends(tmp_path):
    """A job whose server died is exported by the server that ends it, with a link to the original call."""
    store, harness = harness_of(tmp_path, Recipe(tag="b"))
    harness.play(TRAIN, HANG)
    first, second = Recording(), Recording()

    async with running(store, first.tracer, trainer_python=harness.config.trainer.python) as server:
        job_id = await submit(server)
        await server.until("twofold_jobs_running", 1)
    harness.play(TRAIN, finish("rejected", "It is no better."))
    async with running(store, second.tracer, trainer_python=harness.config.trainer.python) as server:
        await follow(server, job_id)

    (link,) = second.tree.single("job").links
    assert key(link.context) == key(first.tree.single(ADAPT).context)
    assert not first.tree.named("job")


async def test_a_job_that_is_cancelled_while_it_waits(tmp_path):
    """A job that never ran has a span with its wait only; a job of an untraced call has no link."""
    harness = Harness(tmp_path)
    harness.play(TRAIN, HANG)
    recording = Recording()

    async with harness.running(on_end=lambda job: recording.tracer.add_finished(job_span(job))) as runner:
        running = await runner.submit(SPEC, INLINE)
        waiting = await runner.submit(SPEC, INLINE)
        await until(runner, running.id, runs)
        await runner.cancel(waiting.id)
    recording.tracer.close()
    job = recording.tree.single("job")
    assert job.attributes["twofold.job.state"] == "cancelled"
    assert [span.name for span in recording.tree.below(job)] == ["wait"]
    assert list(job.links) == []

"""The adaptation jobs of a soak test: some complete, some are cancelled, and some are watched for a while."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from twofold.v1 import adaptation_pb2 as pb
from twofold.v1 import inference_pb2

from benchmarks.load.checkpoints import EXAMPLES
from benchmarks.soak.calls import TIMEOUT_SECONDS, Caller

_FINAL_STATES = {pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_REJECTED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED}


def sample_examples(rng: Random) -> list[pb.Example]:
    """Return random examples of new entity types."""
    lines = (EXAMPLES / "lockers-train.jsonl").read_text(encoding="utf-8").splitlines()
    examples = []
    for line in rng.sample(lines, 80):
        example = json.loads(line)
        entities = [
            inference_pb2.Entity(start=entity["start"], end=entity["end"], type=entity["type"])
            for entity in example["entities"]
        ]
        examples.append(pb.Example(text=example["text"], entities=pb.EntityList(entities=entities)))
    return examples


@dataclass(slots=True)
class Jobs:
    """The number of jobs by final state, or `base_changed`, and the reasons of failed jobs."""

    states: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


async def adapt(caller: Caller, until: float, jobs: Jobs) -> None:
    """Run a job to its end, or cancel it after a while, and record its final state."""
    request = pb.AdaptRequest(
        dataset=pb.Dataset(inline=pb.Examples(train=sample_examples(caller.rng))),
        head=inference_pb2.HEAD_NER,
        freeze=caller.rng.choice((pb.FREEZE_MODE_BACKBONE, pb.FREEZE_MODE_ALL, pb.FREEZE_MODE_HEAD)),
        promote=caller.rng.choice((pb.PROMOTE_POLICY_AUTO, pb.PROMOTE_POLICY_NEVER)),
        hyperparameters=pb.Hyperparameters(epochs=2),
    )
    job = (await caller.adaptation.Adapt(request, timeout=TIMEOUT_SECONDS)).job
    cancel_at = time.monotonic() + caller.rng.uniform(0, 20) if caller.rng.random() < 0.5 else until
    while job.state not in _FINAL_STATES and time.monotonic() < cancel_at:
        await asyncio.sleep(0.3)
        job = (await caller.adaptation.GetJob(pb.GetJobRequest(job_id=job.id), timeout=TIMEOUT_SECONDS)).job
    if job.state not in _FINAL_STATES:  # If the job ends meanwhile, this fails with FAILED_PRECONDITION.
        await caller.adaptation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=60)
        job = (await caller.adaptation.GetJob(pb.GetJobRequest(job_id=job.id), timeout=TIMEOUT_SECONDS)).job
    state = pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    if job.state == pb.JOB_STATE_FAILED:
        if "current checkpoint changed from" in job.reason:  # `swap_repeatedly` promoted another checkpoint.
            state = "base_changed"
        else:
            jobs.failures.append(f"{job.id}: {job.reason}")
    jobs.states[state] += 1


async def watch_and_cancel(caller: Caller) -> None:
    """Watch the newest job for a few events or seconds, then cancel the stream."""
    await asyncio.sleep(caller.rng.uniform(0.2, 1.0))
    jobs = (await caller.adaptation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=TIMEOUT_SECONDS)).jobs
    if not jobs:
        return
    call = caller.adaptation.WatchJob(pb.WatchJobRequest(job_id=jobs[0].id), timeout=caller.rng.uniform(1, 8))
    received, limit = 0, caller.rng.randint(1, 40)
    async for _ in call:
        received += 1
        if received >= limit:
            call.cancel()
            return

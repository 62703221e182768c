"""Adaptation jobs of a soak: some run to their end, some are cancelled, and those who watch them leave."""

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
from benchmarks.soak.calls import PATIENCE, Caller

_OVER = {pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_REJECTED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED}


def examples(chance: Random) -> list[pb.Example]:
    """Choose examples of new entity types."""
    lines = (EXAMPLES / "lockers-train.jsonl").read_text(encoding="utf-8").splitlines()
    made = []
    for line in chance.sample(lines, 80):
        one = json.loads(line)
        entities = [
            inference_pb2.Entity(start=entity["start"], end=entity["end"], type=entity["type"])
            for entity in one["entities"]
        ]
        made.append(pb.Example(text=one["text"], entities=pb.EntityList(entities=entities)))
    return made


@dataclass(slots=True)
class Jobs:
    """How many ended in each state, or were overtaken, and what is said of those that failed."""

    states: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


async def adapt(caller: Caller, until: float, jobs: Jobs) -> None:
    """Run a job to its end, or cancel it after a while; note how it ended."""
    request = pb.AdaptRequest(
        dataset=pb.Dataset(inline=pb.Examples(train=examples(caller.chance))),
        head=inference_pb2.HEAD_NER,
        freeze=caller.chance.choice((pb.FREEZE_MODE_BACKBONE, pb.FREEZE_MODE_ALL, pb.FREEZE_MODE_HEAD)),
        promote=caller.chance.choice((pb.PROMOTE_POLICY_AUTO, pb.PROMOTE_POLICY_NEVER)),
        hyperparameters=pb.Hyperparameters(epochs=2),
    )
    job = (await caller.adaptation.Adapt(request, timeout=PATIENCE)).job
    cancel_at = time.monotonic() + caller.chance.uniform(0, 20) if caller.chance.random() < 0.5 else until
    while job.state not in _OVER and time.monotonic() < cancel_at:
        await asyncio.sleep(0.3)
        job = (await caller.adaptation.GetJob(pb.GetJobRequest(job_id=job.id), timeout=PATIENCE)).job
    if job.state not in _OVER:  # It may end in this very moment; then it says that it is too late.
        await caller.adaptation.CancelJob(pb.CancelJobRequest(job_id=job.id), timeout=60)
        job = (await caller.adaptation.GetJob(pb.GetJobRequest(job_id=job.id), timeout=PATIENCE)).job
    ended = pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    if job.state == pb.JOB_STATE_FAILED:
        if "current moved from" in job.reason:  # Promoted over by keep_swapping: it must not go live then.
            ended = "overtaken"
        else:
            jobs.failures.append(f"{job.id}: {job.reason}")
    jobs.states[ended] += 1


async def watch_and_leave(caller: Caller) -> None:
    """Watch the newest job for a few events or seconds, then go away."""
    await asyncio.sleep(caller.chance.uniform(0.2, 1.0))
    jobs = (await caller.adaptation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=PATIENCE)).jobs
    if not jobs:
        return
    call = caller.adaptation.WatchJob(pb.WatchJobRequest(job_id=jobs[0].id), timeout=caller.chance.uniform(1, 8))
    seen, enough = 0, caller.chance.randint(1, 40)
    async for _ in call:
        seen += 1
        if seen >= enough:
            call.cancel()
            return

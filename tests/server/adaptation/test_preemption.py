"""Job preemption: when a job is paused and resumed, and what happens to its processes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil
import pytest
from support import tiny_checkpoints
from support.running_server import running
from support.scripted_trainer import HANG, INLINE, SPEC, TRAIN, Harness, finish, over, runs, until
from twofold_server.adaptation.preemption import MIN_REQUESTS, WINDOW_SECONDS, JobPreemptor
from twofold_server.jobs.model import JobState


@dataclass
class Jobs:
    """Records its calls."""

    running_job: str = "one"
    messages: list[str] = field(default_factory=list)

    async def pause(self, reason: str) -> None:
        """Record the call."""
        self.messages.append(reason.split(maxsplit=1)[0])

    async def resume(self, reason: str) -> None:
        """Record the call."""
        self.messages.append(reason.split(maxsplit=1)[0])


@dataclass
class Day:
    """A fake clock with requests of given latencies in each second."""

    jobs: Jobs = field(default_factory=Jobs)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.way = JobPreemptor(self.jobs, 0.1, clock=lambda: self.now)

    async def pass_by(self, seconds: int, *latencies: float) -> list[str]:
        """Let seconds pass with a poll at the end of each, and return the recorded calls."""
        before = len(self.jobs.messages)
        for _ in range(seconds):
            self.now += 1.0
            for latency in latencies:
                self.way.request_finished(latency)
            await self.way.check()
        return self.jobs.messages[before:]


FAST, SLOW = (0.05,) * 10, (0.2,) * 10


@pytest.mark.parametrize(
    ("latencies", "reasons"),
    [
        (FAST, []),
        (SLOW, ["Paused:"]),
        ((*FAST, *FAST, 0.2), []),
        ((*FAST, 0.2), ["Paused:"]),
        ((0.2,) * (MIN_REQUESTS // int(WINDOW_SECONDS) - 1), []),
        ((), []),
    ],
    ids=["fast", "slow", "one of twenty-one is slow", "one of eleven is slow", "too few to say", "nobody asks"],
)
async def test_a_job_is_paused_by_the_95th_percentile(latencies: tuple[float, ...], reasons: list[str]) -> None:
    """A job is paused once if more than one in twenty requests exceeds the limit and there are enough requests."""
    assert await Day().pass_by(5, *latencies) == reasons


async def test_each_pause_rests_longer_than_the_one_before() -> None:
    """A job resumes once latency is below the limit and its pause is over: 5 seconds first, then 10; a new job starts at 5."""
    day = Day()
    assert await day.pass_by(3, *SLOW) == ["Paused:"]
    assert await day.pass_by(20, *SLOW) == []
    assert await day.pass_by(6, *FAST) == ["Resumed"]
    assert await day.pass_by(1, *SLOW) == ["Paused:"]
    assert await day.pass_by(9, *FAST) == []
    assert await day.pass_by(1, *FAST) == ["Resumed"]
    day.jobs.running_job = "two"
    assert await day.pass_by(5, *SLOW) == ["Paused:"]
    assert await day.pass_by(7, *FAST) == ["Resumed"]


async def test_without_a_job_nothing_is_paused() -> None:
    """Without a job nothing is paused, and a job that starts while answers are slow is paused."""
    day = Day(Jobs(running_job=""))
    assert await day.pass_by(5, *SLOW) == []
    day.jobs.running_job = "one"
    assert await day.pass_by(1, *SLOW) == ["Paused:"]


def states() -> set[str]:
    """Return the states of the trainer processes."""
    return {child.status() for child in psutil.Process().children()}


async def reach(state: str) -> None:
    """Wait until all trainers are in a state."""
    async with asyncio.timeout(10):
        while states() != {state}:  # noqa: ASYNC110 -- a process tells nobody that it was stopped.
            await asyncio.sleep(0.01)


async def test_a_paused_job_stops_and_resumes(harness: Harness) -> None:
    """A paused job's process is stopped, events and metrics show it, it does not count as running, and it ends successfully."""
    harness.play(TRAIN, ("sleep", 1.0), finish())

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        await until(runner, view.id, runs)
        await runner.pause("Paused: because.")
        await runner.pause("Paused: again.")
        await reach(psutil.STATUS_STOPPED)
        assert not runner.is_running
        assert runner.running_job == view.id
        assert harness.metric("twofold_job_paused") == 1
        await asyncio.sleep(1.2)
        assert (await runner.jobs.get(view.id)).state is JobState.RUNNING
        await runner.resume("Resumed: because.")
        assert runner.is_running
        view = await over(runner, view.id)
        assert view.state is JobState.SUCCEEDED
        assert view.report.notes == ("Paused: because.", "Resumed: because.")
        await runner.pause("Paused: nothing runs.")
    assert harness.metric("twofold_job_paused") == 0
    assert harness.metric("twofold_job_pauses_total") == 1


async def test_a_paused_job_can_be_cancelled(harness: Harness) -> None:
    """CancelJob resumes the trainer, which ends long before the grace period is over, and nothing stays paused."""
    harness.play(TRAIN, HANG)

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        await until(runner, view.id, runs)
        await runner.pause("Paused: because.")
        await reach(psutil.STATUS_STOPPED)
        view = await asyncio.wait_for(runner.cancel(view.id), 3)
        assert view.state is JobState.CANCELLED
        assert not psutil.Process().children()
    assert harness.metric("twofold_job_paused") == 0


async def test_a_server_watches_the_latency_of_its_requests(tmp_path: Path) -> None:
    """With `preempt_above_ms` every answered request counts; without it, no latency is collected."""
    store = tiny_checkpoints.make_store(tmp_path, "a")

    async def heard(limit: float) -> tuple[int, bool]:
        seen, looked = [], asyncio.Event()

        async def check(_: JobPreemptor) -> None:
            looked.set()

        with (
            mock.patch("twofold_server.adaptation.preemption.CHECK_SECONDS", 0.01),
            mock.patch.object(JobPreemptor, "request_finished", lambda _, seconds: seen.append(seconds)),
            mock.patch.object(JobPreemptor, "check", check),
        ):
            async with running(store, preempt_above_ms=limit) as server:
                await server.predict("rain")
                await server.predict("play", "wake")
                if limit:
                    await asyncio.wait_for(looked.wait(), 10)
        return len(seen), looked.is_set()

    assert await heard(50.0) == (2, True)
    assert await heard(0.0) == (0, False)

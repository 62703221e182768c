"""Events, replayed and live."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.scripted_trainer import (
    INLINE,
    SPEC,
    TRAIN,
    Harness,
    finish,
    over,
    runs,
    say,
    until,
)
from twofold_checkpoint.protocol.events import PhaseStarted, ScoreMeasured
from twofold_server.errors import (
    UnknownNameError,
)
from twofold_server.jobs.model import JobState, PhaseEnded, StateEntered, replay


async def test_watchers_see_every_event_wherever_they_begin(harness: Harness) -> None:
    """Past events are replayed from any sequence number, live ones follow, and all watchers see the same."""
    score = ScoreMeasured(figure="new", moment="before", metric="f1", value=0.5, examples=9)
    harness.play(TRAIN, say(score), ("sleep", 0.3), say(PhaseStarted(phase="gate")), finish())

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)

        async def watch(after: int, pause: float = 0.0) -> list[Any]:
            records = []
            async for record in runner.jobs.watch(view.id, after):
                await asyncio.sleep(pause)
                records.append(record)
            return records

        async with asyncio.timeout(20):
            everything, slow, late = await asyncio.gather(watch(0), watch(0, 0.05), watch(4))
            assert everything == slow == await watch(0)
            assert late == everything[4:] == await watch(4)
            assert await watch(everything[-1].sequence) == []
        ended = await runner.jobs.get(view.id)
        assert everything[-1].event == StateEntered(state=JobState.SUCCEEDED, reason="It went well.")
        assert ended.last_sequence == everything[-1].sequence
        assert [record.phase for record in everything if isinstance(record.event, PhaseEnded)] == ["train", "gate"]
        assert replay(view_at_first(ended), everything) == ended
        with pytest.raises(UnknownNameError, match="job-none"):
            await anext(runner.jobs.watch("job-none"))
    assert harness.metric("twofold_adaptation_score", figure="new", moment="before") == 0.5
    assert harness.metric("twofold_job_phase_seconds_count", phase="train") == 1


def view_at_first(view: Any) -> Any:
    """Return a job as it was before its first event."""
    return type(view)(id=view.id, spec=view.spec, created=view.created, base="first")


async def test_a_cancelled_watch_affects_nobody(harness: Harness) -> None:
    """A cancelled watch affects neither the job nor the other watchers."""
    harness.play(TRAIN, ("sleep", 0.4), finish())

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)

        async def watch() -> int:
            return len([record async for record in runner.jobs.watch(view.id)])

        leaving, staying = asyncio.create_task(watch()), asyncio.create_task(watch())
        await until(runner, view.id, runs)
        leaving.cancel()
        assert await staying == (await over(runner, view.id)).last_sequence

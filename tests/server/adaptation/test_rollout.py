"""What happens to a candidate."""

from __future__ import annotations

from typing import Any

import pytest
from support.scripted_trainer import (
    INLINE,
    SPEC,
    TRAIN,
    Harness,
    add_checkpoint,
    finish,
    over,
    publish,
    runs,
    until,
)
from twofold_checkpoint.errors import CheckpointNotFoundError
from twofold_server.errors import (
    SwapError,
)
from twofold_server.jobs.model import JobState


@pytest.mark.parametrize(
    ("promote", "current", "candidate", "phases"),
    [
        ("auto", "second", None, ["train", "swap"]),
        ("manual", "first", "second", ["train"]),
        ("never", "first", None, ["train"]),
    ],
)
async def test_promote_decides_where_a_candidate_goes(
    harness: Harness, promote: Any, current: str, candidate: str | None, phases: list[str]
) -> None:
    """AUTO swaps before the job succeeds, MANUAL sets the alias "candidate", NEVER only publishes."""
    harness.play(*publish())

    view = await harness.run(promote=promote)

    assert (view.state, view.candidate, view.reason) == (JobState.SUCCEEDED, "second", "Published second.")
    assert (harness.store.aliases().current, harness.store.aliases().candidate) == (current, candidate)
    assert [phase.name for phase in view.phases] == phases
    assert view.report.swap_seconds == (0.25 if promote == "auto" else 0)


@pytest.mark.parametrize("error", [SwapError("golden text differs"), CheckpointNotFoundError("gone"), KeyError("odd")])
async def test_a_failed_swap_fails_the_job_and_keeps_the_candidate(harness: Harness, error: Exception) -> None:
    """If the candidate cannot go live, the job says so, the old checkpoint serves, and the alias "candidate" names the new one."""
    harness.play(*publish())
    harness.promoter.fails = error

    view = await harness.run()

    assert view.state is JobState.FAILED
    assert "second was published but is not live" in view.reason
    assert (harness.store.aliases().current, harness.store.aliases().candidate) == ("first", "second")


async def test_a_candidate_is_not_promoted_over_another_base(harness: Harness) -> None:
    """If `current` changed during the training, the candidate waits for a person."""
    harness.play(TRAIN, ("sleep", 0.5), *publish())
    add_checkpoint(harness.store, "other")

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        await until(runner, view.id, runs)
        harness.store.promote("other")
        view = await over(runner, view.id)
        assert view.state is JobState.FAILED
        assert "the current checkpoint changed from first to other" in view.reason
    assert (harness.store.aliases().current, harness.store.aliases().candidate) == ("other", "second")


async def test_a_queued_job_resolves_its_base_when_it_starts(harness: Harness) -> None:
    """A job resolves its base alias when it starts, so that consecutive jobs build on each other."""
    async with harness.running() as runner:
        harness.play(TRAIN, ("sleep", 0.3), *publish()[1:])
        first = await runner.submit(SPEC, INLINE)
        await until(runner, first.id, runs)
        second = await runner.submit(SPEC, INLINE)
        assert (second.base, second.queue_position) == ("first", 0)
        harness.play(finish())
        assert (await over(runner, first.id)).state is JobState.SUCCEEDED
        assert (await over(runner, second.id)).base == "second"

"""What Prometheus sees of a running and a finished job."""

from __future__ import annotations

from support.scripted_trainer import INLINE, SPEC, TRAIN, Harness, finish, over, runs, say, until
from twofold_checkpoint.protocol.events import ScoreMeasured


def score(figure: str, moment: str, value: float) -> tuple[str, str]:
    """Let the trainer write a score."""
    return say(ScoreMeasured(figure=figure, moment=moment, metric="f1", value=value, examples=9))


async def test_the_running_job_is_seen_with_its_start(harness: Harness) -> None:
    """While a job runs, its metric is 1 and its start time is set; afterwards both are 0."""
    harness.play(TRAIN, ("wait", "go-on"), finish())

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        view = await until(runner, view.id, runs)
        assert view.started
        assert harness.metric("twofold_jobs_running") == 1
        assert harness.metric("twofold_job_start_time_seconds") == view.started.timestamp()
        (harness.store.root / "go-on").touch()
        await over(runner, view.id)
    assert harness.metric("twofold_jobs_running") == harness.metric("twofold_job_start_time_seconds") == 0


async def test_scores_are_of_one_job(harness: Harness) -> None:
    """The scores of the last job stay after its end; the first score of the next job replaces all of them."""
    figures = [(figure, moment) for figure in ("protected", "retained", "new") for moment in ("before", "after")]

    def actual() -> list[float | None]:
        return [harness.metric("twofold_adaptation_score", figure=figure, moment=moment) for figure, moment in figures]

    values = [0.9, 0.89, 0.7, 0.72, 0.1, 0.8]
    harness.play(TRAIN, *(score(*item, value) for item, value in zip(figures, values, strict=True)), finish())
    await harness.run()
    assert actual() == values

    harness.play(TRAIN, finish("failed", "It could not."))
    await harness.run()
    assert actual() == values

    harness.play(TRAIN, score("protected", "before", 0.5), finish("failed", "It could not."))
    await harness.run()
    assert actual() == [0.5, None, None, None, None, None]


async def test_a_phase_of_a_strange_name_is_counted_as_other(harness: Harness) -> None:
    """Unknown phases are counted as "other", so that the labels are the documented ones."""
    harness.play(("say", '{"event": "PhaseStarted", "phase": "words of a caller"}'), TRAIN, finish())
    await harness.run()

    assert harness.metric("twofold_job_phase_seconds_count", phase="other") == 1
    assert harness.metric("twofold_job_phase_seconds_count", phase="train") == 1
    assert harness.metric("twofold_job_phase_seconds_count", phase="words of a caller") is None

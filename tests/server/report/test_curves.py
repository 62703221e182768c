"""Curves from events, and positions in a chart."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twofold_checkpoint.protocol.events import Event, GuardChecked, PhaseStarted, ScoreMeasured, StepCompleted
from twofold_server.jobs.model import EventRecord
from twofold_server.report.curves import MAX_POINTS, collect_curves
from twofold_server.report.plot import Scale

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def records(*events: Event) -> list[EventRecord]:
    """Return numbered events."""
    return [EventRecord(sequence=number, time=NOW, phase="", event=event) for number, event in enumerate(events, 1)]


def step(stage: str, number: int) -> StepCompleted:
    """Return the event of a step."""
    return StepCompleted(stage=stage, step=number, total_steps=9, loss=1 / number, remaining_seconds=0.0)


def dev(value: float) -> ScoreMeasured:
    """Return the event of a dev score."""
    return ScoreMeasured(figure="dev", moment="during", metric="f1", value=value, examples=5)


def test_events_are_grouped_by_stage() -> None:
    """A stage begins with its phase, or when a step names another stage; the score before it belongs to it."""
    check = GuardChecked(step=1, baseline=0.9, value=0.8, allowed=0.05, examples=9, action="restore")
    before = ScoreMeasured(figure="new", moment="before", metric="f1", value=0.5, examples=5)
    job_records = records(
        before,
        PhaseStarted(phase="probe"),
        dev(0.1),
        step("heads", 1),
        dev(0.2),
        PhaseStarted(phase="train"),
        dev(0.3),
        step("top 2 blocks", 2),
        dev(0.4),
        dev(0.5),
        step("all blocks", 3),
        check,
        dev(0.6),
        PhaseStarted(phase="evaluate"),
    )
    stages = collect_curves(job_records)

    assert [(stage.name, [point.value for point in stage.dev]) for stage in stages] == [
        ("heads", [0.1, 0.2]),
        ("top 2 blocks", [0.3, 0.4]),
        ("all blocks", [0.5, 0.6]),
    ]
    assert [[point.order for point in stage.dev] for stage in stages] == [[1, 2], [3, 4], [5, 7]]
    assert [(point.order, point.action) for point in stages[2].guard] == [(6, "restore")]
    assert [point.step for stage in stages for point in stage.loss] == [1, 2, 3]


def test_steps_go_on_over_all_stages() -> None:
    """If the step count restarts, in a new stage or a resumed trainer, the curve still continues to the right."""
    job_records = records(
        PhaseStarted(phase="probe"),
        *(step("heads", number) for number in (10, 40)),
        PhaseStarted(phase="train"),
        *(step("own copies", number) for number in (5, 30, 20, 50)),
    )

    assert [[point.step for point in stage.loss] for stage in collect_curves(job_records)] == [
        [10, 40],
        [45, 70, 90, 120],
    ]


def test_long_curves_are_thinned() -> None:
    """A long training keeps at most MAX_POINTS points, including the last."""
    [stage] = collect_curves(records(PhaseStarted(phase="train"), *(step("heads", n) for n in range(1, 5000))))

    assert MAX_POINTS / 2 < len(stage.loss) <= MAX_POINTS
    assert stage.loss[-1].step == 4999
    assert sorted(point.step for point in stage.loss) == [point.step for point in stage.loss]


@pytest.mark.parametrize("flipped", [False, True])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_every_value_is_on_its_scale(flipped: bool, values: list[float]) -> None:
    """A scale holds all values that it was made around, in their order, with a handful of ticks."""
    scale = Scale.around(values, flipped=flipped)
    places = [scale(value) for value in sorted(values)]

    assert scale.low <= min(values) + 1e-6 * scale.step
    assert scale.high >= max(values) - 1e-6 * scale.step
    assert places == sorted(places, reverse=flipped)
    assert all(0 <= location <= 100 for location in places)
    assert 1 <= len(scale.ticks) <= 8

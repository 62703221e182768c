"""Replaying events gives the job."""

from __future__ import annotations

import datetime as dt

import pytest
from support.job_specs import job_spec
from twofold_checkpoint.protocol.events import (
    DatasetDescribed,
    FrozenVerified,
    GateEvaluated,
    NoteAdded,
    ParityMeasured,
    PhaseStarted,
    PlanMade,
    Published,
    ScoreMeasured,
    StepCompleted,
)
from twofold_checkpoint.protocol.job import Hyperparameters
from twofold_server.jobs.model import (
    MAX_NOTES,
    BaseChosen,
    EventRecord,
    Job,
    JobEvent,
    JobState,
    Phase,
    PhaseEnded,
    ScoreChange,
    StateEntered,
    Swapped,
    new_job_id,
    record,
    replay,
)
from twofold_server.versions.events import RolledBack, Shadowed

SHADOWED = Shadowed(texts=9, failed=0, slow=0, agreed={"ner": 2}, comparable={"ner": 3}, seconds=2.5)
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
QUEUED = StateEntered(state=JobState.QUEUED, reason="Waits.")
RUNNING = StateEntered(state=JobState.RUNNING, reason="Runs.")
DATASET = DatasetDescribed(
    train_examples=8,
    dev_examples=1,
    gate_examples=1,
    label_counts={"where": 8},
    unaligned_annotations=2,
    mean_tokens=4.5,
)
PROVEN = FrozenVerified(parameters=7, digest_before="aa", digest_after="aa")
SETTINGS = Hyperparameters(epochs=2, batch_size=8)


def at(seconds: float) -> dt.datetime:
    """Return a time after the start."""
    return START + dt.timedelta(seconds=seconds)


def first() -> Job:
    """Return a job without events."""
    return Job(id="job-1", spec=job_spec(head="ner"), created=START, base="alias")


def tell(view: Job, *event: JobEvent) -> tuple[Job, list[EventRecord]]:
    """Apply one event per second."""
    records: list[EventRecord] = []
    for seconds, item in enumerate(event):
        new = record(view, item, at(seconds))
        records += new
        view = replay(view, new)
    return view, records


def score(figure: str, moment: str, value: float) -> ScoreMeasured:
    """Return the event of a score."""
    return ScoreMeasured(figure=figure, moment=moment, metric="f1", value=value, examples=9)  # type: ignore[arg-type]


EFFECTS: list[tuple[list[JobEvent], dict[str, object]]] = [
    ([QUEUED], {"state": JobState.QUEUED, "reason": "", "started": None, "last_sequence": 1}),
    ([QUEUED, RUNNING], {"state": JobState.RUNNING, "started": at(1), "reason": "", "ended": None}),
    (
        [QUEUED, RUNNING, StateEntered(state=JobState.REJECTED, reason="Worse.")],
        {"state": JobState.REJECTED, "reason": "Worse.", "started": at(1), "ended": at(2)},
    ),
    ([StateEntered(state=JobState.CANCELLED, reason="No.")], {"started": None, "ended": at(0), "phase": ""}),
    ([BaseChosen(checkpoint_id="c1")], {"base": "c1"}),
    ([Published(checkpoint_id="c2")], {"candidate": "c2"}),
    ([PhaseStarted(phase="probe")], {"phase": "probe", "phases": (Phase(name="probe", started=at(0)),)}),
    (
        [PhaseStarted(phase="probe"), PhaseStarted(phase="train"), StateEntered(state=JobState.FAILED, reason="Oh.")],
        {
            "phase": "train",
            "phases": (
                Phase(name="probe", started=at(0), ended=at(1)),
                Phase(name="train", started=at(1), ended=at(2)),
            ),
            "last_sequence": 5,
        },
    ),
    ([StepCompleted(stage="s", step=1, total_steps=2, loss=0.5, remaining_seconds=9)], {"last_sequence": 1}),
    ([PlanMade(plan="Train.", hyperparameters=SETTINGS)], {"hyperparameters": SETTINGS}),
]
REPORTS: list[tuple[list[JobEvent], dict[str, object]]] = [
    ([], {"protected": None, "verdict": None, "notes": (), "swap_seconds": 0.0}),
    ([score("new", "before", 0.5)], {"new": ScoreChange(metric="f1", examples=9, before=0.5), "protected": None}),
    (
        [score("protected", "before", 0.5), score("protected", "after", 0.25)],
        {"protected": ScoreChange(metric="f1", examples=9, before=0.5, after=0.25)},
    ),
    ([score("retained", "after", 0.0)], {"retained": ScoreChange(metric="f1", examples=9, after=0.0)}),
    ([score("dev", "during", 0.5), score("protected", "during", 0.1)], {"new": None, "protected": None}),
    ([GateEvaluated(verdict="inconclusive", reason="Too little.")], {"verdict": "inconclusive"}),
    ([PROVEN, DATASET], {"frozen": PROVEN, "dataset": DATASET}),
    (
        [PlanMade(plan="Train.", hyperparameters=SETTINGS, added_labels=("a",))],
        {"plan": "Train.", "added_labels": ("a",)},
    ),
    ([NoteAdded(message="One."), NoteAdded(message="Two.", warning=True)], {"notes": ("One.", "Two.")}),
    ([NoteAdded(message=str(number)) for number in range(200)], {"notes": tuple(map(str, range(MAX_NOTES)))}),
    ([ParityMeasured(max_error=2e-6, texts=9), ParityMeasured(max_error=1e-6, texts=9)], {"max_parity_error": 2e-6}),
    ([Swapped(checkpoint_id="c2", seconds=1.5)], {"swap_seconds": 1.5}),
    ([SHADOWED], {"shadow": SHADOWED}),
    (
        [RolledBack(checkpoint_id="c2", restored_id="c1", cause="errors", reason="9 of 9 failed")],
        {"rolled_back": "c2 was rolled back: 9 of 9 failed. c1 is live again."},
    ),
]


@pytest.mark.parametrize(("event", "expected"), EFFECTS)
def test_a_job_is_the_sum_of_its_events(event: list[JobEvent], expected: dict[str, object]) -> None:
    """Each kind of event changes only what it is about."""
    view, _ = tell(first(), *event)

    assert {name: getattr(view, name) for name in expected} == expected


@pytest.mark.parametrize(("event", "expected"), REPORTS)
def test_a_report_is_the_sum_of_its_measurements(event: list[JobEvent], expected: dict[str, object]) -> None:
    """Scores before and after are paired, and missing ones stay absent."""
    view, _ = tell(first(), *event)

    assert {name: getattr(view.report, name) for name in expected} == expected


def test_a_phase_ends_when_the_next_begins_or_the_job_is_over() -> None:
    """The end of a phase is a separate event with its number and time, recorded under the phase that ended."""
    over = StateEntered(state=JobState.SUCCEEDED, reason="Well.")
    _, records = tell(first(), QUEUED, RUNNING, PhaseStarted(phase="train"), NoteAdded(message="n"), over)

    assert [(item.sequence, item.phase) for item in records] == [
        (1, ""),
        (2, ""),
        (3, "train"),
        (4, "train"),
        (5, "train"),
        (6, ""),
    ]
    assert records[4].event == PhaseEnded(seconds=2.0)


def test_ids_sort_by_time_and_differ() -> None:
    """Ids sort by time, and two of the same second differ."""
    assert new_job_id(at(0)) < new_job_id(at(1)) < new_job_id(at(100_000))
    assert new_job_id(at(0)) != new_job_id(at(0))

"""The trainer's findings: the scores of its events, the right examples, and no text if none may be stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_models
from trainer.conftest import MakeJob
from twofold_checkpoint.decoding import Entity, LabelScore, Prediction
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.protocol.events import DatasetDescribed, Event, GateEvaluated, NoteAdded, ScoreMeasured, to_line
from twofold_checkpoint.protocol.findings import Findings, read_findings
from twofold_checkpoint.protocol.job import Hyperparameters, Statistical, TrainerJob
from twofold_checkpoint.store import Store
from twofold_trainer.adapt import run_job
from twofold_trainer.evaluation.confusions import count_names, list_confusions, pairs_of
from twofold_trainer.evaluation.findings import count_lengths
from twofold_trainer.scoring.confidence_intervals import interval, wilson
from twofold_trainer.scoring.scores import SpanCounts, accuracy, span_f1

pytestmark = pytest.mark.slow

QUICK = Hyperparameters(epochs=2, backbone_learning_rate=1e-3, head_learning_rate=1e-2)
BOTH = [
    Example(text=f"{example.text} both", label="weather", entities=example.entities)
    for example in tiny_models.restaurant(60, seed=5)
]


def findings_of(job: TrainerJob) -> tuple[list[Event], Findings]:
    """Run a job to its end, and return its events and findings."""
    events, _ = tiny_models.ending(run_job(job))
    findings = read_findings(Path(job.store) / "jobs" / job.id)
    assert findings is not None
    return events, findings


def scores(events: Iterable[Event], moment: str) -> dict[str, float]:
    """Return the scores of one moment, without the dev scores."""
    message = [
        event
        for event in events
        if isinstance(event, ScoreMeasured) and event.moment == moment and event.figure != "dev"
    ]
    return {score.figure: score.value for score in message}


@pytest.mark.parametrize("head", ["ner", "classifier"])
def test_findings_match_the_events(make_job: MakeJob, head: str) -> None:
    """Scores, flips and names in the findings match the events, and their texts are the held-out ones."""
    margin = Statistical(margin=90)
    events, findings = findings_of(make_job(head, freeze="head", hyperparameters=QUICK, protection=margin))
    (judged,) = (event for event in events if isinstance(event, GateEvaluated))
    (compared,) = judged.comparisons

    assert {figure.figure: figure.before.value for figure in findings.figures} == scores(events, "before")
    assert {figure.figure: figure.after.value for figure in findings.figures} == scores(events, "after")
    protected = findings.figures[0]
    assert (protected.figure, protected.gained, protected.lost) == ("protected", compared.gained, compared.lost)
    assert (protected.difference.low, protected.difference.high) == (compared.lower_bound, compared.upper_bound)
    assert protected.calibration_after == compared.calibration_after
    for figure in findings.figures:
        assert figure.before.low <= figure.before.value <= figure.before.high
        assert figure.difference.low <= figure.difference.value <= figure.difference.high
        shown = [change.better for change in findings.changes if change.figure == figure.figure]
        assert shown == [False] * min(20, figure.lost) + [True] * min(20, figure.gained)
    assert tuple(
        example.text for example in findings.changes if example.figure == "protected" and not example.better
    ) == (judged.negative_flips)
    assert findings.texts
    assert any(row.name in {"people", "taxi"} and row.figure == "new" for row in findings.names)
    (described,) = (event for event in events if isinstance(event, DatasetDescribed))
    assert sum(count for _, count in findings.lengths) == described.train_examples
    _check_changes(findings)


def _check_changes(findings: Findings) -> None:
    """Assert that each change is better or worse as it says, and that its spans are within its text."""
    assert findings.changes
    for change in findings.changes:
        if change.label is not None:
            assert (change.after if change.better else change.before).label == change.label
            assert change.before.label != change.after.label
        else:
            wanted = {(span.start, span.end, span.type) for span in change.entities}
            hits = [len(wanted & {(e.start, e.end, e.type) for e in a.entities}) for a in (change.before, change.after)]
            assert hits[1] >= hits[0] if change.better else hits[1] <= hits[0]
            assert all(
                0 <= span.start < span.end <= len(change.text) for span in (*change.entities, *change.after.entities)
            )


def test_a_job_that_only_measures_has_findings(make_job: MakeJob) -> None:
    """A job that only measures writes its scores, without scores after training."""
    _, findings = findings_of(make_job("classifier", freeze="all"))

    assert {figure.figure for figure in findings.figures} == {"protected", "retained", "new"}
    assert all(figure.after is None and figure.difference is None for figure in findings.figures)
    assert findings.changes == ()


def test_a_job_does_not_fail_for_its_report(make_job: MakeJob, store: Store) -> None:
    """If findings cannot be written, the job continues with a warning."""
    (store.root / "jobs").write_text("no directory")
    events, end = tiny_models.ending(run_job(make_job("classifier", freeze="all")))

    assert end.outcome == "succeeded"
    assert any(
        isinstance(event, NoteAdded) and event.warning and "The report lacks" in event.message for event in events
    )


@pytest.mark.parametrize("mode", ["statistics", "none"])
def test_findings_have_no_text_if_none_may_be_stored(make_job: MakeJob, mode: str) -> None:
    """If no text may be stored, neither the findings nor any event contains one."""
    cut = Example(text="a table for two peopleish today cut", entities=(Span(start=12, end=20, type="people"),))
    given = {"train": [*tiny_models.restaurant(80), cut], "dev": BOTH}
    margin = Statistical(margin=90)
    # Rates at which protected answers change, so that there is something to be silent about.
    rough = Hyperparameters(
        epochs=4, backbone_learning_rate=1e-2, head_learning_rate=1e-2, distillation=0.0, guard=False
    )
    job = make_job("ner", memory=mode, freeze="head", hyperparameters=rough, protection=margin, **given)
    events, findings = findings_of(job)
    message = b"".join(map(to_line, events)) + msgspec.json.encode(findings)

    (protected,) = (figure for figure in findings.figures if figure.figure == "protected")
    assert protected.lost + protected.gained > 0
    assert not findings.texts
    assert any(
        isinstance(event, NoteAdded) and "1 annotations begin or end inside a word" in event.message for event in events
    )
    texts = [
        example.text
        for values in (tiny_models.examples(240), tiny_models.examples(120, seed=9), *given.values())
        for example in values
    ]
    assert [text for text in texts if text.encode() in message] == []
    assert b"peopleish" not in message


def label(name: str) -> Prediction:
    """Return an answer with a label."""
    return Prediction(labels=(LabelScore(name, 0.9),))


def test_labels_are_counted() -> None:
    """The counts of labels and confusions add up to the examples."""
    examples = [Example(text=text, label=name) for text, name in (("a", "x"), ("b", "x"), ("c", "y"))]
    before = pairs_of("classifier", examples, [label("x"), label("y"), label("y")])
    after = pairs_of("classifier", examples, [label("x"), label("x"), label("z")])

    rows = {row.name: row for row in count_names("new", before, after)}
    assert [
        (n, r.expected, r.answered_before, r.right_before, r.answered_after, r.right_after) for n, r in rows.items()
    ] == [
        ("x", 2, 1, 1, 2, 2),
        ("y", 1, 2, 1, 0, 0),
        ("z", 0, 0, 0, 1, 0),
    ]
    wrong = list_confusions("new", before, after)
    assert [(item.expected, item.answered, item.before, item.after) for item in wrong] == [
        ("y", "z", 0, 1),
        ("x", "y", 1, 0),
    ]


def test_entities_are_counted() -> None:
    """A span of another type is a confusion, an unexpected span is extra, and unannotated types do not count."""
    example = Example(
        text="from Oslo to Rome",
        entities=(Span(start=5, end=9, type="city"), Span(start=13, end=17, type="city")),
        annotated_types=("city", "person"),
    )
    answer = Prediction(
        entities=(
            Entity(start=0, end=4, type="city", score=1.0),
            Entity(start=5, end=9, type="person", score=1.0),
            Entity(start=10, end=12, type="date", score=1.0),
        )
    )

    assert pairs_of("ner", [example], [answer]) == Counter(
        {("city", "person"): 1, ("city", None): 1, (None, "city"): 1}
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.data())
def test_an_interval_holds_its_value(examples: int, data: st.DataObject) -> None:
    """Wilson's interval contains the share, lies within 0 and 1, and is never empty."""
    right = data.draw(st.integers(0, examples))
    low, high = wilson(right / examples, examples)

    assert 0 <= low <= right / examples <= high <= 1
    assert high > low


def test_intervals() -> None:
    """Known values: 81 of 263 (Newcombe 1998, two-sided 95 %), and F1, for which a bootstrap of perfect texts would have no width."""
    low, high = wilson(81 / 263, 263, alpha=0.025)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)

    perfect = interval(span_f1([SpanCounts(1, 1, 1)] * 20))
    assert perfect.low < 0.9
    assert perfect.high == 1.0
    mixed = interval(span_f1([SpanCounts(1, 1, 1), SpanCounts(0, 2, 2)] * 20))
    assert mixed.low < mixed.value < mixed.high
    assert interval(accuracy([1, 0, 1, 1])).value == 0.75


def test_lengths_are_counted() -> None:
    """Every text is in one range, up to the range of the longest text."""
    assert count_lengths([3, 4, 5, 16, 17]) == ((4, 2), (8, 1), (12, 0), (16, 1), (24, 1))
    assert count_lengths([]) == ()

"""A report with every field set."""

from __future__ import annotations

import datetime as dt
from typing import Any

from msgspec.structs import replace
from twofold_checkpoint.decoding import Entity
from twofold_checkpoint.examples import Span
from twofold_checkpoint.manifest import Branch, Score
from twofold_checkpoint.protocol.events import Compared
from twofold_checkpoint.protocol.findings import Answer, Change, Confusion, Interval, Measurement, NameCount
from twofold_checkpoint.protocol.job import Hyperparameters, Statistical, TrainingRequest
from twofold_server.jobs.model import JobState
from twofold_server.report.document import (
    Ancestor,
    DatasetFacts,
    DevPoint,
    Document,
    GuardPoint,
    LossPoint,
    Note,
    PhaseSeconds,
    Proofs,
    StageCurves,
)

BEGAN = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
PROTECTED = Measurement(
    figure="protected",
    head="classifier",
    metric="accuracy",
    examples=400,
    before=Interval(value=0.92, low=0.9, high=0.94),
    after=Interval(value=0.915, low=0.895, high=0.935),
    difference=Interval(value=-0.005, low=-0.0123, high=0.001),
    gained=1,
    lost=3,
    calibration_before=0.03,
    calibration_after=0.04,
)
NEW = replace(PROTECTED, figure="new", head="ner", metric="f1", gained=70, lost=2)
FLIP = Change(
    figure="protected",
    better=False,
    text="where is it",
    label="where",
    before=Answer(label="where", score=0.9),
    after=Answer(label="refund", score=0.6),
)
FIXED = Change(
    figure="new",
    better=True,
    text="to Rome today",
    entities=(Span(start=3, end=7, type="city"),),
    before=Answer(entities=()),
    after=Answer(entities=(Entity(start=3, end=7, type="city", score=0.9),)),
)
DOCUMENT = Document(
    job_id="job-1",
    state=JobState.SUCCEEDED,
    verdict="pass",
    reason="Published second: the protected score fell by less than 1.23 points (95 % confidence).",
    created=BEGAN,
    started=BEGAN + dt.timedelta(seconds=2),
    ended=BEGAN + dt.timedelta(seconds=90),
    request=TrainingRequest(head="ner", protection=Statistical(margin=2.0), retained_margin=3.0, seed=7),
    promote="auto",
    texts=True,
    figures=(PROTECTED, NEW),
    gate=(
        Compared(
            against="base",
            before=0.92,
            after=0.915,
            lower_bound=-0.0123,
            upper_bound=0.001,
            examples=400,
            gained=1,
            lost=3,
            needed_examples=1234,
        ),
    ),
    stages=(
        StageCurves(
            name="heads",
            loss=(LossPoint(step=1, value=2.0), LossPoint(step=9, value=1.0)),
            dev=(DevPoint(order=1, value=0.1), DevPoint(order=2, value=0.5)),
        ),
        StageCurves(
            name="all blocks",
            loss=(LossPoint(step=20, value=0.5),),
            dev=(DevPoint(order=3, value=0.5), DevPoint(order=5, value=0.8)),
            guard=(GuardPoint(order=4, value=0.9, baseline=0.92, allowed=0.01, action="restore"),),
        ),
    ),
    names=(
        NameCount(
            figure="protected",
            name="where",
            expected=200,
            answered_before=200,
            right_before=190,
            answered_after=196,
            right_after=188,
        ),
        NameCount(
            figure="protected",
            name="refund",
            expected=200,
            answered_before=200,
            right_before=190,
            answered_after=204,
            right_after=190,
        ),
        NameCount(
            figure="new", name="city", expected=90, answered_before=0, right_before=0, answered_after=88, right_after=80
        ),
    ),
    confusions=(
        Confusion(figure="protected", expected="where", answered="refund", before=10, after=12),
        Confusion(figure="new", expected="city", answered=None, before=90, after=10),
    ),
    changes=(FLIP, FIXED),
    dataset=DatasetFacts(
        train_examples=300,
        dev_examples=30,
        gate_examples=90,
        label_counts={"city": 250},
        unaligned_annotations=2,
        mean_tokens=9.5,
        lengths=((8, 100), (16, 200)),
    ),
    notes=(Note(phase="validate", message="A note."), Note(phase="train", message="A warning.", warning=True)),
    plan="Adapt the ner head.",
    hyperparameters=Hyperparameters(epochs=3, guard=True, projection=0.0),
    added_labels=("city",),
    proofs=Proofs(
        frozen_tensors=30,
        digest_before="ab" * 32,
        digest_after="ab" * 32,
        parity_max_error=1e-5,
    ),
    branch=Branch(head="ner", blocks=3),
    phases=(PhaseSeconds(name="validate", seconds=1.5), PhaseSeconds(name="train", seconds=80.0)),
    swap_seconds=0.25,
    base="first",
    candidate="second",
    lineage=(
        Ancestor(
            id="second",
            created="2026-01-01T12:01:00+00:00",
            job_id="job-1",
            scores=(Score(head="ner", metric="f1", value=0.8, examples=90),),
            branch=Branch(head="ner", blocks=3),
            aliases=("current",),
            role="candidate",
        ),
        Ancestor(
            id="first",
            created="2026-01-01T12:00:00+00:00",
            job_id=None,
            scores=(),
            branch=None,
            aliases=("previous", "approved"),
            role="base",
        ),
    ),
)


def document(**changes: Any) -> Document:
    """Return the report with changes."""
    return replace(DOCUMENT, **changes)

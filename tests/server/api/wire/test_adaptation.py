"""Requests, jobs and events on the wire."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import json_format
from support.job_specs import job_spec
from twofold.v1 import adaptation_pb2 as pb
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.protocol import events as ev
from twofold_checkpoint.protocol.hyperparameter_ranges import RANGES
from twofold_checkpoint.protocol.job import Exact, Hyperparameters, Statistical
from twofold_server.adaptation.uploads import ExampleBatch, Header
from twofold_server.api.wire.adaptation import read_adapt, read_upload
from twofold_server.api.wire.jobs import write_event, write_job
from twofold_server.errors import InvalidRequestError
from twofold_server.jobs import model
from twofold_server.jobs.model import EventRecord, Job, JobState, record, replay
from twofold_server.versions.events import RolledBack, Shadowed

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MINIMAL = {"head": "HEAD_NER", "dataset": {"inline": {"train": [{"text": "to Rome", "entities": {}}]}}}


def request(**fields: Any) -> pb.AdaptRequest:
    """Return a request like MINIMAL; a field that is None is left out."""
    given = {name: value for name, value in {**MINIMAL, **fields}.items() if value is not None}
    return json_format.ParseDict(given, pb.AdaptRequest())


def inline(*train: dict[str, Any]) -> dict[str, Any]:
    """Return a data set with inline examples."""
    return {"inline": {"train": list(train)}}


def span(start: int, end: int, kind: str = "city") -> dict[str, Any]:
    """Return an entity."""
    return {"start": start, "end": end, "type": kind}


def test_zero_values_mean_the_documented_defaults() -> None:
    """Zero values are read as the documented defaults."""
    spec, data = read_adapt(request())

    assert spec == job_spec(
        head="ner",
        freeze="auto",
        protection=Statistical(margin=1.0),
        label_policy="append",
        promote="auto",
        base="current",
    )
    assert data is not None
    assert data.train == (Example(text="to Rome", entities=()),)


def test_every_field_is_read() -> None:
    """Every field of a request is read."""
    settings = {
        "epochs": 3, "batch_size": 8, "head_learning_rate": 0.01, "backbone_learning_rate": 1e-5, "layer_decay": 0.5,
        "warmup_ratio": 0.25, "weight_decay": 0.0, "patience": 2, "rehearsal_ratio": 0.0, "unfrozen_blocks": 0,
        "distillation": 0.0, "retention": 2.0, "projection": 0.5, "guard": False, "train_norms": True, "repair": 0.5,
        "mixed_precision": False,
    }  # fmt: skip
    spec, data = read_adapt(
        request(
            head="HEAD_CLASSIFIER",
            dataset={"upload_id": "upload-1", "annotated_types": ["city", "day"]},
            freeze="FREEZE_MODE_BACKBONE",
            protection={"exact": {}},
            label_policy="LABEL_POLICY_FIXED",
            hyperparameters=settings,
            max_runtime="1.5s",
            promote="PROMOTE_POLICY_NEVER",
            base_checkpoint="previous",
            seed=str(2**63 - 1),
            request_id="r",
            validate_only=True,
            memory="MEMORY_MODE_STATISTICS",
            shadow_share=0.25,
        )
    )

    assert data is None
    assert spec == job_spec(
        head="classifier",
        upload_id="upload-1",
        annotated_types=("city", "day"),
        freeze="backbone",
        protection=Exact(),
        label_policy="fixed",
        hyperparameters=Hyperparameters(**settings),
        max_runtime=1.5,
        promote="never",
        memory="statistics",
        shadow_share=0.25,
        base="previous",
        seed=2**63 - 1,
        request_id="r",
        validate_only=True,
    )


def test_presence_is_kept() -> None:
    """Unannotated and annotated without entities stay distinct in both parts, and a margin of 0 is not the default."""
    spec, data = read_adapt(
        request(
            dataset={"inline": {
                "train": [{"text": "a", "label": "x"}, {"text": "b c", "entities": {"entities": [span(2, 3), span(0, 1)]}}],
                "dev": [{"text": "d", "entities": {}}],
            }},
            protection={"statistical": {"margin": 0}},
        )
    )  # fmt: skip

    assert spec.request.protection == Statistical(margin=0.0)
    assert data is not None
    assert data.train[0] == Example(text="a", label="x", entities=None)
    assert data.train[1].entities == (Span(start=0, end=1, type="city"), Span(start=2, end=3, type="city"))
    assert data.dev == (Example(text="d", label=None, entities=()),)


def setting(name: str, value: float) -> tuple[dict[str, Any], str, str]:
    """Return a case of a hyperparameter out of its range."""
    written = {"nan": "NaN", "inf": "Infinity"}.get(str(value), value)  # As JSON has them.
    return {"hyperparameters": {name: written}}, f"hyperparameters.{name}", f"{value:g} must be {RANGES[name]}"


def just_outside(name: str) -> Iterator[float]:
    """Yield invalid values of a hyperparameter: on either side of its range, and not finite."""
    allowed, field = RANGES[name], pb.Hyperparameters.DESCRIPTOR.fields_by_name[name]
    step = 1 if field.cpp_type == field.CPPTYPE_INT32 else 0.01
    yield from (allowed.low if allowed.above else allowed.low - step, allowed.high + step)
    if step < 1:
        yield from (float("nan"), float("inf"))


TRAIN = "dataset.inline.train"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"head": None}, "head", "HEAD_CLASSIFIER or HEAD_NER"),
    ({"head": 9}, "head", "9"),
    ({"dataset": None}, "dataset", "is missing"),
    ({"dataset": {"annotated_types": ["a"]}}, "dataset", "is missing"),
    ({"dataset": {"inline": {}}}, TRAIN, "is empty"),
    ({"dataset": {"inline": {"dev": [{"text": "a"}]}}}, TRAIN, "is empty"),
    ({"dataset": {"upload_id": ""}}, "dataset.upload_id", "is empty"),
    ({"dataset": {**inline({"text": "a"}), "annotated_types": ["a", " b"]}}, "dataset.annotated_types[1]", "' b'"),
    ({"dataset": inline({"text": "a"}, {"text": " "})}, f"{TRAIN}[1].text", "is empty"),
    ({"dataset": inline({"text": "a", "label": ""})}, f"{TRAIN}[0].label", "leave it out if not annotated"),
    (
        {"dataset": {"inline": {"train": [{"text": "a"}], "dev": [{"text": ""}]}}},
        "dataset.inline.dev[0].text",
        "is empty",
    ),
    (
        {"dataset": inline(*[{"text": "ok"}] * 3, {"text": "abc", "entities": {"entities": [span(0, 4)]}})},
        f"{TRAIN}[3].entities[0].end",
        "at most the text's 3",
    ),
    (
        {"dataset": inline({"text": "abc", "entities": {"entities": [span(0, 2), span(1, 3)]}})},
        f"{TRAIN}[0].entities[1].start",
        "must not overlap",
    ),
    ({"freeze": 77}, "freeze", "77"),
    ({"label_policy": 77}, "label_policy", "77"),
    ({"promote": 77}, "promote", "77"),
    ({"protection": {"statistical": {"margin": -0.5}}}, "protection.statistical.margin", "-0.5 must be from 0 to 100"),
    ({"protection": {"statistical": {"margin": 100.5}}}, "protection.statistical.margin", "100.5"),
    ({"protection": {"statistical": {"margin": "NaN"}}}, "protection.statistical.margin", "nan"),
    ({"protection": {"exact": {}}, "freeze": "FREEZE_MODE_HEAD"}, "freeze", "use FREEZE_MODE_BACKBONE or AUTO"),
    ({"protection": {"exact": {}}, "freeze": "FREEZE_MODE_STAGED"}, "freeze", "moves the backbone"),
    ({"max_runtime": "0s"}, "max_runtime", "above 0"),
    ({"max_runtime": "-3s"}, "max_runtime", "-3 s"),
    ({"seed": "-1"}, "seed", "-1 is negative"),
    ({"request_id": "x" * 201}, "request_id", "201 characters"),
    ({"request_id": "r\0"}, "request_id", "U+0000"),
    ({"retained_margin": -1}, "retained_margin", "-1 must be from 0 to 100"),
    ({"retained_margin": 101}, "retained_margin", "101 must be from 0 to 100"),
    ({"shadow_share": 1.5}, "shadow_share", "1.5 must be from 0 to 1"),
    ({"shadow_share": -0.5}, "shadow_share", "-0.5 must be from 0 to 1"),
    ({"memory": 77}, "memory", "77"),
    (
        {"dataset": {**inline({"text": "a"}), "annotated_types": ["a"] * 2001}},
        "dataset.annotated_types",
        "has 2001 types; write at most 2000",
    ),
    (
        {"dataset": {**inline({"text": "a"}), "annotated_types": ["a" * 101]}},
        "dataset.annotated_types[0]",
        "has 101 characters; write at most 100",
    ),
    *(setting(name, value) for name in RANGES for value in just_outside(name)),
]


@pytest.mark.parametrize(("fields", "field", "words"), WRONG)
def test_a_wrong_field_is_named_with_its_remedy(fields: dict[str, Any], field: str, words: str) -> None:
    """Each invalid value is rejected with the name of its field and a fix."""
    with pytest.raises(InvalidRequestError) as caught:
        read_adapt(request(**fields))

    assert [violation.field for violation in caught.value.violations] == [field]
    assert words in caught.value.violations[0].description


def test_all_wrong_fields_are_named_at_once_within_a_bound() -> None:
    """All invalid fields are reported at once, up to a limit."""
    with pytest.raises(InvalidRequestError) as caught:
        read_adapt(request(head=None, freeze=77, dataset=inline(*[{"text": ""}] * 100)))

    fields = [violation.field for violation in caught.value.violations]
    assert fields[:3] == ["head", "freeze", f"{TRAIN}[0].text"]
    assert len(fields) == 20


def test_every_hyperparameter_has_its_range() -> None:
    """Every numeric hyperparameter of the message has a range, and boolean ones have none."""
    fields = pb.Hyperparameters.DESCRIPTOR.fields
    assert list(RANGES) == [field.name for field in fields if field.type != field.TYPE_BOOL]


def test_upload_messages_are_read() -> None:
    """A header, train and dev examples are read; anything else is rejected."""
    example = pb.Example(text="a")
    batch = pb.ExampleBatch(examples=[example])

    assert read_upload(pb.UploadDatasetRequest(header=pb.UploadHeader(display_name="x"))) == Header("x")
    assert read_upload(pb.UploadDatasetRequest(train=batch)) == ExampleBatch("train", [Example(text="a")])
    assert read_upload(pb.UploadDatasetRequest(dev=batch)) == ExampleBatch("dev", [Example(text="a")])
    with pytest.raises(InvalidRequestError, match="is not set"):
        read_upload(pb.UploadDatasetRequest())


STORY: list[tuple[model.JobEvent, str | None]] = [
    (model.StateEntered(state=JobState.QUEUED, reason="It waits."), "state"),
    (model.StateEntered(state=JobState.RUNNING, reason="It runs."), "state"),
    (model.BaseChosen(checkpoint_id="first"), None),
    (ev.PhaseStarted(phase="validate"), None),
    (
        ev.DatasetDescribed(
            train_examples=8,
            dev_examples=1,
            gate_examples=2,
            label_counts={"city": 8},
            unaligned_annotations=1,
            mean_tokens=4.5,
        ),
        None,
    ),
    (ev.PlanMade(plan="Train it.", hyperparameters=Hyperparameters(epochs=2), added_labels=("day",)), None),
    (ev.NoteAdded(message="Look."), None),
    (ev.NoteAdded(message="Beware.", warning=True), "warning"),
    (ev.ScoreMeasured(figure="protected", moment="before", metric="accuracy", value=0.5, examples=9), "score"),
    (ev.ScoreMeasured(figure="retained", moment="after", metric="f1", value=0.5, examples=9), "score"),
    (ev.GuardChecked(step=25, baseline=0.9, value=0.88, allowed=0.01, examples=9, action="restore"), "guard"),
    (ev.ExactVerified(texts=9, max_error=1e-7), None),
    (ev.ScoreMeasured(figure="new", moment="after", metric="f1", value=0.0, examples=9), "score"),
    (ev.StepCompleted(stage="heads", step=1, total_steps=2, loss=0.5, remaining_seconds=3), "step"),
    (ev.FrozenVerified(parameters=3, digest_before="a", digest_after="a"), None),
    (ev.ParityMeasured(max_error=1e-6, texts=9), None),
    (
        ev.GateEvaluated(
            verdict="pass",
            reason="Better.",
            comparisons=(
                ev.Compared(
                    against="base",
                    before=0.9,
                    after=0.89,
                    lower_bound=-0.02,
                    upper_bound=0.01,
                    examples=9,
                    gained=1,
                    lost=2,
                    needed_examples=40,
                ),
            ),
            negative_flips=("rain in oslo",),
        ),
        "verdict",
    ),
    (ev.Published(checkpoint_id="second"), "checkpoint_id"),
    (model.Swapped(checkpoint_id="second", seconds=1.5), None),
    (
        Shadowed(
            texts=9,
            failed=1,
            slow=1,
            agreed={"classifier": 7, "ner": 2},
            comparable={"classifier": 8, "ner": 3},
            seconds=2.5,
        ),
        None,
    ),
    (RolledBack(checkpoint_id="second", restored_id="first", cause="errors", reason="9 failed"), "warning"),
    (model.StateEntered(state=JobState.SUCCEEDED, reason="Done."), "state"),
]


def story() -> tuple[Job, list[EventRecord]]:
    """Return a job with one event of each kind, one per second, and its records."""
    view = Job(id="job-1", spec=job_spec(head="ner", request_id="r", promote="never"), created=START, base="")
    records: list[EventRecord] = []
    for seconds, (event, _) in enumerate(STORY):
        new = record(view, event, START + dt.timedelta(seconds=seconds))
        records += new
        view = replay(view, new)
    return view, records


def test_every_event_has_a_sentence_and_its_payload() -> None:
    """Every event has a sentence for people and a payload for programs; the end of a phase has its duration."""
    _, records = story()
    payloads = {id(event): payload for event, payload in STORY}

    for item in records:
        message = write_event(item)
        assert message.message.endswith(".")
        expected = "phase_seconds" if isinstance(item.event, model.PhaseEnded) else payloads[id(item.event)]
        assert message.WhichOneof("payload") == expected
        assert (message.sequence, message.time.ToDatetime(dt.UTC)) == (item.sequence, item.time)
        assert message.phase == ("" if isinstance(item.event, model.StateEntered | model.BaseChosen) else "validate")
    ended = write_event(records[-2])
    assert ended.phase_seconds == len(STORY) - 4
    assert write_event(records[8]).score == pb.ScoreMeasured(
        figure="protected", moment="before", metric="accuracy", value=0.5, examples=9
    )


def test_every_field_of_a_job_is_written() -> None:
    """After a complete job every field of the message is set, and the hyperparameters are the resolved ones."""
    view, _ = story()
    view = model.replace(view, queue_position=3)

    message = write_job(view)

    unset = {field.name for field in pb.Job.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}
    unsaid = {field.name for field in pb.JobReport.DESCRIPTOR.fields}
    unsaid -= {field.name for field, _ in message.report.ListFields()}
    assert (unset, unsaid) == (set(), set())
    assert message.state == pb.JOB_STATE_SUCCEEDED
    assert (message.freeze, message.promote) == (pb.FREEZE_MODE_AUTO, pb.PROMOTE_POLICY_NEVER)
    assert message.hyperparameters == pb.Hyperparameters(epochs=2)
    assert message.report.new == pb.ScoreChange(metric="f1", after=0.0, examples=9)
    assert not message.report.new.HasField("before")
    assert message.report.dataset.label_counts == {"city": 8}


def test_a_queued_job_shows_the_requested_hyperparameters() -> None:
    """Until the trainer resolves them, the hyperparameters are those of the request."""
    requested = job_spec(head="classifier", hyperparameters=Hyperparameters(epochs=7))

    message = write_job(Job(id="job-1", spec=requested, created=START, base="first"))

    assert message.hyperparameters == pb.Hyperparameters(epochs=7)
    assert not message.HasField("start_time")
    assert (message.phase, message.reason, message.report) == ("", "", pb.JobReport())

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twofold import (
    Checkpoint,
    Embeddings,
    Entity,
    Example,
    Freeze,
    GuardCheck,
    Hyperparameters,
    Job,
    JobEvent,
    JobState,
    Model,
    PhaseEnded,
    Predictions,
    PromotePolicy,
    Promotion,
    Published,
    ScoreMeasured,
    Span,
    StepProgress,
    Upload,
    Verdict,
)
from twofold._protobuf import event_from_proto, event_to_proto, from_proto, to_proto
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
counts = st.integers(0, 2**31 - 1)
times = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds it
st.register_type_strategy(str, texts)
st.register_type_strategy(int, counts)
# 32 bits, because some fields are 32-bit floats.
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False, width=32))
st.register_type_strategy(datetime, times)

MESSAGES = {
    Checkpoint: checkpoints_pb2.Checkpoint,
    Embeddings: inference_pb2.EmbedResponse,
    Example: adaptation_pb2.Example,
    Hyperparameters: adaptation_pb2.Hyperparameters,
    Job: adaptation_pb2.Job,
    Model: inference_pb2.GetModelResponse,
    Predictions: inference_pb2.PredictResponse,
    Promotion: checkpoints_pb2.PromoteCheckpointResponse,
    Upload: adaptation_pb2.UploadDatasetResponse,
}
payloads = st.one_of(
    *(
        st.from_type(kind)
        for kind in (JobState, StepProgress, ScoreMeasured, GuardCheck, PhaseEnded, Verdict, Published)
    )
)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_round_trip(kind):
    """A value survives the conversion into an encoded message and back."""

    @settings(max_examples=30, deadline=None)
    @given(value=st.from_type(kind))
    def check(value):
        encoded = to_proto(value, MESSAGES[kind]).SerializeToString()

        assert from_proto(MESSAGES[kind].FromString(encoded), kind) == value

    check()


@settings(max_examples=60, deadline=None)
@given(event=st.builds(JobEvent, payload=st.none() | payloads, warning=st.just(False)))
def test_event_round_trip(event):
    """An event keeps its payload and the type of the payload."""
    encoded = event_to_proto(event).SerializeToString()

    assert event_from_proto(adaptation_pb2.JobEvent.FromString(encoded)) == event


def test_warning():
    """A warning is an event without a payload."""
    event = JobEvent(sequence=3, message="look", warning=True)

    assert event_from_proto(event_to_proto(event)) == event


@pytest.mark.parametrize("entities", [None, (), (Span(start=0, end=2, type="X"),)])
def test_unannotated_is_not_empty(entities):
    """Not annotated, annotated without entities, and annotated with entities stay different."""
    example = Example(text="Hi", entities=entities)

    assert from_proto(to_proto(example, adaptation_pb2.Example), Example) == example


@pytest.mark.parametrize(("number", "state"), [(0, JobState.RUNNING), (99, JobState.RUNNING), (4, JobState.REJECTED)])
def test_unknown_state(number, state):
    """A state that only a newer server knows is RUNNING."""
    assert from_proto(adaptation_pb2.Job(state=number), Job).state is state


def test_zero_values():
    """Zero values of enums are read as the defaults in the contract."""
    job = from_proto(adaptation_pb2.Job(), Job)

    assert (job.freeze, job.promote, job.head, job.report.verdict) == (Freeze.AUTO, PromotePolicy.AUTO, None, None)


def test_values_are_frozen():
    """A result cannot be changed."""
    with pytest.raises(AttributeError):
        Entity(start=0, end=1, type="X").start = 5  # type: ignore[misc]

"""The events that the trainer writes: one JSON object per line."""

from __future__ import annotations

from typing import Literal

import msgspec

from twofold_checkpoint.protocol.job import Hyperparameters

Figure = Literal["protected", "retained", "new", "dev"]
Moment = Literal["before", "during", "after"]
VerdictName = Literal["pass", "fail", "inconclusive"]
Outcome = Literal["succeeded", "rejected", "failed", "cancelled"]


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """Base class of events. The field ``event`` contains the class name."""


class PhaseStarted(_Event, frozen=True, tag=True):
    """A phase started. It ends when the next phase starts or the job ends."""

    phase: str


class NoteAdded(_Event, frozen=True, tag=True):
    """A sentence for the people who read about the job."""

    message: str
    warning: bool = False


class DatasetDescribed(_Event, frozen=True, tag=True):
    """Statistics of the data, after checking and splitting."""

    train_examples: int
    dev_examples: int
    gate_examples: int
    label_counts: dict[str, int]
    unaligned_annotations: int
    mean_tokens: float


class PlanMade(_Event, frozen=True, tag=True):
    """The plan of the training, with all hyperparameters resolved."""

    plan: str
    hyperparameters: Hyperparameters
    added_labels: tuple[str, ...] = ()


class StepCompleted(_Event, frozen=True, tag=True):
    """Progress of the training. Steps are counted over all stages."""

    stage: str
    step: int
    total_steps: int
    loss: float
    remaining_seconds: float


class ScoreMeasured(_Event, frozen=True, tag=True):
    """A score on held-out examples, from 0 to 1."""

    figure: Figure
    moment: Moment
    metric: Literal["accuracy", "f1"]
    value: float
    examples: int


class GuardChecked(_Event, frozen=True, tag=True):
    """The guard scored the protected task on dev examples during training. Scores are from 0 to 1."""

    step: int
    baseline: float
    value: float
    allowed: float
    """Largest accepted drop below the baseline."""
    examples: int
    action: Literal["none", "restore", "leave"]


class FrozenVerified(_Event, frozen=True, tag=True):
    """Digests of the frozen tensors before and after training. If they differ, the job fails."""

    parameters: int
    digest_before: str
    digest_after: str


class ParityMeasured(_Event, frozen=True, tag=True):
    """Largest difference of a logit between the exported graph and the trained model."""

    max_error: float
    texts: int


class ExactVerified(_Event, frozen=True, tag=True):
    """The exported graph gives the same protected answers as the base's graph, on texts that training never saw."""

    texts: int
    max_error: float
    """Largest difference of a logit."""


class Compared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the held-out examples prove about the protected task. Scores and bounds are from 0 to 1; bounds are one-sided at 95 %."""

    against: Literal["base", "approved"]
    before: float
    after: float
    lower_bound: float
    """Bound of the difference after minus before."""
    upper_bound: float
    examples: int
    gained: int
    """Examples answered better than before."""
    lost: int
    needed_examples: int | None = None
    """Number of examples that would decide, if these do not."""
    calibration_before: float | None = None
    """Expected calibration error, from 0 to 1: the distance between confidence and accuracy."""
    calibration_after: float | None = None


class GateEvaluated(_Event, frozen=True, tag=True):
    """The gate's verdict, with its reason as a sentence."""

    verdict: VerdictName
    reason: str
    comparisons: tuple[Compared, ...] = ()
    negative_flips: tuple[str, ...] = ()
    """The first few texts of protected examples that the base answers better."""


class Published(_Event, frozen=True, tag=True):
    """The candidate is in the store."""

    checkpoint_id: str


class Finished(_Event, frozen=True, tag=True):
    """The last event: how the training ended."""

    outcome: Outcome
    reason: str


Event = (
    PhaseStarted
    | NoteAdded
    | DatasetDescribed
    | PlanMade
    | StepCompleted
    | ScoreMeasured
    | GuardChecked
    | FrozenVerified
    | ParityMeasured
    | ExactVerified
    | GateEvaluated
    | Published
    | Finished
)

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def to_line(event: Event) -> bytes:
    """Encode an event as one line, with its line feed."""
    return msgspec.json.encode(event) + b"\n"


def from_line(line: bytes) -> Event:
    """Decode one line. Raises msgspec.DecodeError."""
    return _decoder.decode(line)

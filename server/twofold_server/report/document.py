"""The document behind a job's report, stored as report.json. docs/report-format.md describes every field."""

from __future__ import annotations

import datetime as dt

import msgspec
from twofold_checkpoint.manifest import Branch, Score
from twofold_checkpoint.protocol.events import Compared, VerdictName
from twofold_checkpoint.protocol.findings import Change, Confusion, Measurement, NameCount
from twofold_checkpoint.protocol.job import Hyperparameters, TrainingRequest

from twofold_server.jobs.model import JobState, PromoteName

FORMAT = 1
"""Version of the document. Added fields do not change it."""


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the data."""

    train_examples: int
    dev_examples: int
    gate_examples: int
    label_counts: dict[str, int]
    unaligned_annotations: int
    mean_tokens: float
    lengths: tuple[tuple[int, int], ...] = ()


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A note of the trainer or the server."""

    phase: str
    message: str
    warning: bool = False


class LossPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The mean loss since the previous point."""

    step: int
    value: float


class DevPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A score on dev examples, which stop training and are never used by the gate."""

    order: int
    value: float


class GuardPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A check of the protected task by the guard."""

    order: int
    value: float
    baseline: float
    allowed: float
    action: str


class StageCurves(msgspec.Struct, frozen=True, kw_only=True):
    """The curves of one stage of the training."""

    name: str
    loss: tuple[LossPoint, ...] = ()
    dev: tuple[DevPoint, ...] = ()
    guard: tuple[GuardPoint, ...] = ()


class PhaseSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """A phase and its duration."""

    name: str
    seconds: float


class Proofs(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified about the candidate. None means not measured."""

    frozen_tensors: int | None = None
    digest_before: str | None = None
    digest_after: str | None = None
    exact_texts: int | None = None
    exact_max_error: float | None = None
    parity_max_error: float | None = None


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint in the lineage of the job."""

    id: str
    created: str
    job_id: str | None
    scores: tuple[Score, ...]
    branch: Branch | None
    aliases: tuple[str, ...]
    role: str
    """Its relation to the job: candidate, base, ancestor, or approved for an approved checkpoint outside the lineage."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a report contains about a finished job."""

    format: int = FORMAT
    job_id: str
    state: JobState
    verdict: VerdictName | None
    reason: str
    created: dt.datetime
    started: dt.datetime | None
    ended: dt.datetime | None
    request: TrainingRequest
    promote: PromoteName
    texts: bool
    figures: tuple[Measurement, ...]
    gate: tuple[Compared, ...]
    stages: tuple[StageCurves, ...]
    names: tuple[NameCount, ...]
    confusions: tuple[Confusion, ...]
    changes: tuple[Change, ...]
    dataset: DatasetFacts | None
    notes: tuple[Note, ...]
    plan: str
    hyperparameters: Hyperparameters | None
    added_labels: tuple[str, ...]
    proofs: Proofs
    branch: Branch | None
    phases: tuple[PhaseSeconds, ...]
    swap_seconds: float
    base: str
    candidate: str
    lineage: tuple[Ancestor, ...]

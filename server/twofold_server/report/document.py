"""What a job's report says: report.json. docs/report-format.md describes every field."""

from __future__ import annotations

import datetime as dt

import msgspec
from twofold_checkpoint.manifest import Branch, HeadName, MemoryMode, Score
from twofold_checkpoint.protocol.events import Compared, VerdictName
from twofold_checkpoint.protocol.findings import Change, Confusion, Measurement, NameCount
from twofold_checkpoint.protocol.job import Freeze, Hyperparameters, LabelPolicy

from twofold_server.jobs.model import JobState, PromoteName

FORMAT = 1
"""Version of the document. Fields may be added to it without a new one."""


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the job was asked to do."""

    head: HeadName
    freeze: Freeze
    margin: float | None
    label_policy: LabelPolicy
    retained_margin: float
    promote: PromoteName
    memory: MemoryMode | None
    seed: int
    validate_only: bool


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
    """A sentence that the trainer or the server noted."""

    phase: str
    message: str
    warning: bool = False


class LossPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The mean loss since the point before."""

    step: int
    value: float


class DevPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A score on examples that stop the training and never judge."""

    order: int
    value: float


class GuardPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A look of the guard at the protected task."""

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
    """A phase and how long it took."""

    name: str
    seconds: float


class Proofs(msgspec.Struct, frozen=True, kw_only=True):
    """What was proven of the candidate. None is not measured."""

    frozen_tensors: int | None = None
    digest_before: str | None = None
    digest_after: str | None = None
    exact_texts: int | None = None
    exact_max_error: float | None = None
    parity_max_error: float | None = None


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of the line that the job stands in."""

    id: str
    created: str
    job_id: str | None
    scores: tuple[Score, ...]
    branch: Branch | None
    aliases: tuple[str, ...]
    role: str
    """What it is to this job: candidate, base, ancestor, or approved where it stands beside the line."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Hold everything that is known of a job that is over."""

    format: int = FORMAT
    job_id: str
    state: JobState
    verdict: VerdictName | None
    reason: str
    created: dt.datetime
    started: dt.datetime | None
    ended: dt.datetime | None
    request: JobRequest
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

"""The job file: what the server asks of the trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from twofold_checkpoint.manifest import HeadName, MemoryMode

Freeze = Literal["auto", "all", "backbone", "head", "staged"]
LabelPolicy = Literal["append", "fixed", "replace"]
"""Whether new names are appended to the names of the adapted head, are refused, or replace them."""
RETAINED_MARGIN = 3.0
"""Default of the points that the adapted head may lose on its old labels."""
SNAPSHOTS = "snapshots"
"""Name of the directory, inside the job's, from whose files a trainer resumes after another one died."""
SNAPSHOT_SECONDS = 10.0
"""Default of the minimum seconds between two snapshots."""
SERVER_PHASES = ("shadow", "swap")
PHASES = (
    "validate", "baseline", "cache", "probe", "train", "evaluate", "export", "parity", "gate", *SERVER_PHASES,
)  # fmt: skip
"""Phases of a job in their usual order. The server runs the last ones."""


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hyperparameters of a training. None: the trainer chooses, and reports its choice."""

    epochs: int | None = None
    batch_size: int | None = None
    head_learning_rate: float | None = None
    backbone_learning_rate: float | None = None
    layer_decay: float | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    patience: int | None = None
    rehearsal_ratio: float | None = None
    unfrozen_blocks: int | None = None
    distillation: float | None = None
    retention: float | None = None
    projection: float | None = None
    guard: bool | None = None
    train_norms: bool | None = None
    repair: float | None = None
    mixed_precision: bool | None = None


class Exact(msgspec.Struct, frozen=True, tag="exact"):
    """Do not change any tensor of the protected path."""


class Statistical(msgspec.Struct, frozen=True, kw_only=True, tag="statistical"):
    """Allow the protected score to fall by at most *margin* points (0.01 of a score)."""

    margin: float = 1.0


class TrainingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks of an adaptation. The server passes it to the trainer unchanged."""

    head: HeadName
    """The head to adapt. The task of the other head is protected."""
    freeze: Freeze = "auto"
    protection: Exact | Statistical = Statistical()
    label_policy: LabelPolicy = "append"
    retained_margin: float | None = RETAINED_MARGIN
    """Points that the adapted head may lose on its old labels; None: no limit."""
    annotated_types: tuple[str, ...] = ()
    """Entity types that the data annotates; empty: those that occur in it."""
    hyperparameters: Hyperparameters = Hyperparameters()
    memory: MemoryMode | None = None
    """What the candidate stores for the next adaptation; None: the same as its base."""
    max_runtime: float | None = None
    """Seconds of training, after which the best state so far is evaluated; None: no limit."""
    seed: int = 0
    validate_only: bool = False
    """Whether to check and plan the job without training."""

    @property
    def margin(self) -> float | None:
        """Points that the protected score may fall; None if protection is exact."""
        return self.protection.margin if isinstance(self.protection, Statistical) else None


class TrainerJob(msgspec.Struct, frozen=True, kw_only=True):
    """One adaptation, as the server describes it to the trainer."""

    id: str
    store: str
    """Directory of the store that contains the base and receives the candidate."""
    base: str
    """Id of the checkpoint to start from."""
    train: str
    """JSON-lines file of training examples."""
    dev: str | None = None
    """JSON-lines file of held-out examples; None: the trainer sets aside a part of *train*."""
    request: TrainingRequest
    snapshot_seconds: float = SNAPSHOT_SECONDS
    """Minimum seconds between two snapshots of the training; 0: one after every epoch."""


def write_job_file(path: str | os.PathLike[str], job: TrainerJob) -> None:
    """Write a job as JSON."""
    Path(path).write_bytes(msgspec.json.encode(job))


def read_job_file(path: str | os.PathLike[str]) -> TrainerJob:
    """Read a job. Raises msgspec.DecodeError for a malformed file."""
    return msgspec.json.decode(Path(path).read_bytes(), type=TrainerJob)

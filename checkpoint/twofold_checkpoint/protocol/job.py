"""What the server asks of the trainer, as a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from twofold_checkpoint.manifest import HeadName, MemoryMode

Freeze = Literal["auto", "all", "backbone", "head", "staged"]
LabelPolicy = Literal["append", "fixed", "replace"]
"""New names are appended to the adapted head's, or refused, or take their place."""
RETAINED_MARGIN = 3.0
"""Points that the adapted head may lose on its old labels, unless somebody says otherwise."""
SNAPSHOTS = "snapshots"
"""Name of the directory, in that of the job, from whose files a trainer goes on where another one died."""
SNAPSHOT_SECONDS = 10.0
"""Least time between two snapshots, unless somebody says otherwise."""
SERVER_PHASES = ("shadow", "swap")
PHASES = (
    "validate", "baseline", "cache", "probe", "train", "evaluate", "export", "parity", "gate", *SERVER_PHASES,
)  # fmt: skip
"""Phases of a job in their usual order. The last ones are the server's."""


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings of a training. None means that the trainer chooses; it reports what it chose."""

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
    """Keep the protected path's tensors as they are."""


class Statistical(msgspec.Struct, frozen=True, kw_only=True, tag="statistical"):
    """Allow the protected score to fall by at most *margin* points (0.01 of a score)."""

    margin: float = 1.0


class TrainerJob(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one adaptation to the trainer."""

    id: str
    store: str
    """Directory of the store that holds the base and takes the candidate."""
    base: str
    """Id of the checkpoint to start from."""
    train: str
    """JSON-lines file of examples to train on."""
    dev: str | None = None
    """JSON-lines file of held-out examples; None means that a part of *train* is set aside."""
    head: HeadName
    freeze: Freeze = "auto"
    protection: Exact | Statistical = Statistical()
    label_policy: LabelPolicy = "append"
    retained_margin: float | None = RETAINED_MARGIN
    """Points that the adapted head's old labels may lose; None lets them lose anything."""
    annotated_types: tuple[str, ...] = ()
    """Entity types that the data annotates; empty means those that occur in it."""
    hyperparameters: Hyperparameters = Hyperparameters()
    memory: MemoryMode | None = None
    """What the candidate carries for the next adaptation; None means the same as the base does."""
    max_runtime: float | None = None
    """Seconds after which training stops and the best state so far is judged."""
    seed: int = 0
    validate_only: bool = False
    snapshot_seconds: float = SNAPSHOT_SECONDS
    """Least time between two snapshots of the training; zero takes one after every epoch."""


def write_job(path: str | os.PathLike[str], job: TrainerJob) -> None:
    """Write a job as JSON."""
    Path(path).write_bytes(msgspec.json.encode(job))


def read_job(path: str | os.PathLike[str]) -> TrainerJob:
    """Read a job. Raises msgspec.DecodeError for a malformed file."""
    return msgspec.json.decode(Path(path).read_bytes(), type=TrainerJob)

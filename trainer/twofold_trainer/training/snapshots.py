"""Resume snapshots: the state of each stage, saved beside the job, from which a restarted trainer resumes. See ADR 28."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from twofold_checkpoint.protocol.events import NoteAdded
from twofold_checkpoint.protocol.job import SNAPSHOT_SECONDS

from twofold_trainer.errors import SnapshotError
from twofold_trainer.modeling.freezing import digest
from twofold_trainer.planning.plan import Plan

log = logging.getLogger(__name__)

MAX_WRITE_SHARE = 0.05
"""Largest share of the training time that writing snapshots may take."""
_HEADER_KEY = "header"


class SnapshotHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in a snapshot except its tensors."""

    epochs: int
    step: int
    breaches: int
    finished: bool
    """Whether the stage has finished its epochs."""
    before: float
    value: float
    best_accepted: float
    rejected: float | None
    highest: float
    epochs_without_gain: int
    rates: tuple[float, ...]
    """Learning rate of each parameter group of the optimizer."""
    rng_state: tuple[int, ...]
    """State of the generator that shuffles the epochs."""
    training: str = ""
    """Digest of everything that the training depends on; see training_digest."""
    checksum: str = ""
    """Digest of the header (without this field) and the tensors."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a stage between two epochs."""

    header: SnapshotHeader
    tensors: dict[str, Tensor]


class ResumeSnapshots:
    """Saves and loads the last snapshot of each stage of a training, as ``DIRECTORY/stage-N.safetensors``.

    *training* is the digest of the training; snapshots of another one are rejected. At most one snapshot is written every
    *seconds*, the first after that time, and writing takes at most MAX_WRITE_SHARE of the time. With 0 seconds every
    snapshot is written; without a *directory*, none.
    """

    def __init__(
        self,
        directory: Path | None = None,
        training: str = "",
        seconds: float = SNAPSHOT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._training = training
        self._seconds = seconds
        self._clock = clock
        self._due = clock() + seconds if directory else math.inf

    def has(self, number: int) -> bool:
        """Tell whether a snapshot file of a stage exists; it may be unusable."""
        return self._directory is not None and self._path(self._directory, number).exists()

    def find(self, number: int) -> Snapshot | None:
        """Load the snapshot of a stage, or return None if there is none. Raises SnapshotError if it is unusable."""
        if self._directory is None or not self.has(number):
            return None
        try:
            with safe_open(self._path(self._directory, number), framework="pt") as file:
                header = msgspec.json.decode((file.metadata() or {}).get(_HEADER_KEY, ""), type=SnapshotHeader)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a dict.
        except (OSError, SafetensorError, msgspec.DecodeError) as error:
            log.warning("cannot read a resume snapshot", exc_info=True)
            raise SnapshotError("it is damaged") from error
        if header.training != self._training:
            raise SnapshotError("it belongs to another job, base, data set or trainer version")
        if header.checksum != _checksum(header, tensors):
            raise SnapshotError("it is damaged")
        return Snapshot(header, tensors)

    def save_if_due(self, number: int, make_snapshot: Callable[[], Snapshot]) -> Iterator[NoteAdded]:
        """Replace the snapshot of a stage if one is due. A failed write yields a warning and disables further snapshots."""
        started_at = self._clock()
        if self._directory is None or started_at < self._due:
            return
        try:
            self._write(self._directory, number, make_snapshot())
        except (OSError, SafetensorError) as error:
            log.warning("cannot write a resume snapshot", exc_info=True)
            self._due = math.inf
            why = " ".join(str(error).split())
            yield NoteAdded(
                message=f"Cannot write snapshots, so a restarted trainer would start from the beginning: {why}.",
                warning=True,
            )
            return
        now = self._clock()
        self._due = now + (max(self._seconds, (now - started_at) / MAX_WRITE_SHARE) if self._seconds else 0.0)

    def _write(self, directory: Path, number: int, snapshot: Snapshot) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
        header = msgspec.structs.replace(snapshot.header, training=self._training)
        header = msgspec.structs.replace(header, checksum=_checksum(header, tensors))
        path = self._path(directory, number)
        temporary = path.with_suffix(".new")
        try:
            save_file(tensors, temporary, metadata={_HEADER_KEY: msgspec.json.encode(header).decode()})
            # No fsync: a snapshot torn by a power loss fails its checksum and only costs retraining.
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _path(directory: Path, number: int) -> Path:
        return directory / f"stage-{number}.safetensors"


NO_SNAPSHOTS = ResumeSnapshots()
"""Saves and loads nothing."""


def _checksum(header: SnapshotHeader, tensors: dict[str, Tensor]) -> str:
    sha256 = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(header, checksum="")))
    sha256.update(digest(tensors, tensors).encode())
    return sha256.hexdigest()


def training_digest(plan: Plan) -> str:
    """Return the SHA-256 of everything that a training depends on: job, request, base, examples, recipe and torch version."""
    request = msgspec.structs.replace(plan.request, max_runtime=None)
    identity = (
        plan.job.id,
        request,
        plan.base.manifest,
        dataclasses.asdict(plan.recipe),
        plan.parts,
        str(torch.__version__),
    )
    sha256 = hashlib.sha256(msgspec.json.encode(identity, order="deterministic"))
    for target in plan.rehearsed:
        sha256.update(msgspec.json.encode(target.example))
    return sha256.hexdigest()

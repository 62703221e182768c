"""The manifest: the metadata of a checkpoint."""

from __future__ import annotations

from typing import Literal

import msgspec

from twofold_checkpoint.encoding import EncoderSettings
from twofold_checkpoint.labels import LabelSet

FORMAT = 1
"""Version of the directory's layout. A reader refuses a newer one."""

HeadName = Literal["classifier", "ner"]
MemoryMode = Literal["examples", "statistics", "none"]
"""What a checkpoint stores of its training data: examples, activation covariances without any text, or nothing."""
Precision = Literal["fp32", "int8", "bf16", "fp16"]
"""The numeric precision of a graph. Every checkpoint has an fp32 graph; the other precisions are reduced."""
HEADS: tuple[HeadName, HeadName] = ("classifier", "ner")


def other_head(head: HeadName) -> HeadName:
    """Return the head that is protected while *head* is adapted."""
    return "ner" if head == "classifier" else "classifier"


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """A fork: *head* has separate copies of the top *blocks* blocks of the backbone."""

    head: HeadName
    blocks: int


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A metric on held-out examples: classifier accuracy, or span micro-F1 of the NER head."""

    head: HeadName
    metric: Literal["accuracy", "f1"]
    value: float
    examples: int


class ReducedGraph(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's result for a graph in reduced precision. The checkpoint contains the graph's files only if it passed."""

    precision: Precision
    passed: bool
    reason: str
    """One sentence with the measured values."""
    isolation_error: float
    """Largest difference of a probability between a row alone and the same row in a batch."""
    scores: tuple[Score, ...] = ()
    """Scores on held-out examples; the fp32 graph is the baseline."""


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """Size and SHA-256 of one file of the checkpoint."""

    name: str
    size: int
    sha256: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to reproduce the checkpoint."""

    seed: int
    data_sha256: str
    """Digest over the training examples, in order."""
    settings: dict[str, float | int | str | bool]
    """Resolved hyperparameters."""
    versions: dict[str, str]
    """Versions of the libraries that trained and exported it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of an immutable checkpoint, stored as manifest.json next to the files that it lists."""

    format: int
    id: str
    parent: str | None
    job_id: str | None
    created: str
    """ISO 8601, UTC."""
    backbone: str
    """Name under which the encoder was first loaded: a hub id, a package or a directory's name."""
    architecture: str
    """``model_type`` of the backbone's configuration, such as "bert"."""
    pooling: Literal["mean", "cls", "last"]
    hidden_size: int
    labels: LabelSet
    encoder: EncoderSettings
    scores: tuple[Score, ...]
    provenance: Provenance
    files: tuple[FileDigest, ...]
    branch: Branch | None = None
    """None while both heads share the whole backbone."""
    memory: MemoryMode = "examples"
    reduced: tuple[ReducedGraph, ...] = ()
    """Empty in checkpoints published before reduced graphs existed."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions in which the checkpoint may serve."""
        return ("fp32", *(graph.precision for graph in self.reduced if graph.passed))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

"""One immutable version of the model, as a directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.errors import CheckpointCorruptError, CheckpointFormatError, CheckpointNotFoundError
from twofold_checkpoint.manifest import FORMAT, FileDigest, Manifest, Precision

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
GRAPH_WEIGHTS = "model.onnx.data"
TRAINING_WEIGHTS = "weights.safetensors"
BACKBONE_CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
MEMORY = "memory.jsonl"
STATISTICS = "statistics.safetensors"
"""Only where the memory is one of statistics."""
GOLDEN = "golden.json"

SLOW_FUSIONS = ("SkipLayerNormFusion",)
"""Fusions of ONNX Runtime that a graph runs without on a CPU, where the fused operator is an order of magnitude slower than
its parts. Trainer and server leave out the same ones, so that they compute the same to the last bit."""
INT8_GRAPH = "model.int8.onnx"
INT8_GRAPH_WEIGHTS = "model.int8.onnx.data"
"""What the int8 graph does not share with the fp32 graph's weights."""
INT8_GOLDEN = "golden.int8.json"

FILES = (GRAPH, GRAPH_WEIGHTS, TRAINING_WEIGHTS, BACKBONE_CONFIG, TOKENIZER, MEMORY, GOLDEN)
"""The files of every checkpoint, beside its manifest."""
SERVED = (GRAPH, GRAPH_WEIGHTS, TOKENIZER, GOLDEN)
"""Those of them that an engine reads. The others are for the next adaptation."""
INT8_FILES = (INT8_GRAPH, INT8_GRAPH_WEIGHTS, INT8_GOLDEN)
"""Only where a graph in int8 passed its gate."""
_PIECE = 4 << 20
"""Bytes that are read and hashed at once. Both let go of the interpreter, and the fewer times it has to be had back beside
a busy server, the better."""


def serving_files(precision: Precision) -> tuple[str, ...]:
    """Return the files that an engine of this precision reads: one in int8 takes from fp32 what it does not replace."""
    return (*SERVED, *INT8_FILES) if precision == "int8" else SERVED


def graph_files(precision: Precision) -> tuple[str, str]:
    """Return the names of a precision's graph and of its golden answers."""
    return (INT8_GRAPH, INT8_GOLDEN) if precision == "int8" else (GRAPH, GOLDEN)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Point at a checkpoint's directory and hold its manifest. Opening reads only the manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read the manifest.

        Raises CheckpointNotFoundError, CheckpointCorruptError or CheckpointFormatError.
        """
        root = Path(path)
        try:
            raw = (root / MANIFEST).read_bytes()
        except OSError as error:
            raise CheckpointNotFoundError(f"{root.name}: no readable {MANIFEST}: {error.strerror}") from error
        try:
            written = msgspec.json.decode(raw)
            version = written.get("format") if isinstance(written, dict) else None
            if isinstance(version, int) and version > FORMAT:
                raise CheckpointFormatError(
                    f"{root.name}: format {version} is newer than {FORMAT}, the newest that this version reads; upgrade"
                )
            manifest = msgspec.convert(written, Manifest)
        except (msgspec.DecodeError, ValueError) as error:
            raise CheckpointCorruptError(f"{root.name}: {MANIFEST}: {error}") from error
        if any(Path(file.name).name != file.name for file in manifest.files):
            raise CheckpointCorruptError(f"{root.name}: {MANIFEST} names a file outside the checkpoint")
        return cls(root, manifest)

    @property
    def id(self) -> str:
        """The checkpoint's id."""
        return self.manifest.id

    def verify(self, names: Collection[str] | None = None) -> None:
        """Compare files, or all of them, with their digests. Raises CheckpointCorruptError that names the first bad one."""
        listed = {file.name for file in self.manifest.files}
        if missing := [name for name in FILES if name not in listed]:
            raise CheckpointCorruptError(f"{self.id}: {MANIFEST} does not list {missing[0]}")
        for expected in self.manifest.files:
            if names is not None and expected.name not in names:
                continue
            try:
                actual = digest_file(self.path / expected.name)
            except OSError as error:
                raise CheckpointCorruptError(f"{self.id}: {expected.name}: {error.strerror}") from error
            if actual.size != expected.size:
                raise CheckpointCorruptError(
                    f"{self.id}: {expected.name} has {actual.size} bytes instead of {expected.size}"
                )
            if actual.sha256 != expected.sha256:
                raise CheckpointCorruptError(f"{self.id}: {expected.name} has changed since it was published")

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer."""
        return Tokenizer.from_file(str(self.path / TOKENIZER))

    def encoder(self) -> Encoder:
        """Load the encoder."""
        return Encoder(self.tokenizer(), self.manifest.encoder)


def digest_file(path: Path) -> FileDigest:
    """Return a file's name, size and SHA-256."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(piece):
            digest.update(piece[:read])
    return FileDigest(name=path.name, size=path.stat().st_size, sha256=digest.hexdigest())


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write manifest.json and flush it to disk."""
    with (path / MANIFEST).open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        file.flush()
        os.fsync(file.fileno())

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
"""Present only if the memory mode is "statistics"."""
GOLDEN = "golden.json"

SLOW_FUSIONS = ("SkipLayerNormFusion",)
"""ONNX Runtime fusions that are disabled on CPUs, where the fused operator is about ten times slower than its parts.
Trainer and server disable the same fusions, so that their results are bit-identical."""
INT8_GRAPH = "model.int8.onnx"
INT8_GRAPH_WEIGHTS = "model.int8.onnx.data"
"""The int8 graph's weights that it does not share with the fp32 graph."""
INT8_GOLDEN = "golden.int8.json"

FILES = (GRAPH, GRAPH_WEIGHTS, TRAINING_WEIGHTS, BACKBONE_CONFIG, TOKENIZER, MEMORY, GOLDEN)
"""The files of every checkpoint, in addition to its manifest."""
SERVED = (GRAPH, GRAPH_WEIGHTS, TOKENIZER, GOLDEN)
"""The files that an engine reads. Only the next adaptation needs the other files."""
INT8_FILES = (INT8_GRAPH, INT8_GRAPH_WEIGHTS, INT8_GOLDEN)
"""Present only if the int8 graph passed its gate."""
_PIECE = 4 << 20
"""Bytes to read and hash per step. Both release the GIL; large steps reacquire it less often on a busy server."""


def serving_files(precision: Precision) -> tuple[str, ...]:
    """Return the files that an engine of this precision reads. An int8 engine also reads the fp32 weights that it shares."""
    return (*SERVED, *INT8_FILES) if precision == "int8" else SERVED


def graph_files(precision: Precision) -> tuple[str, str]:
    """Return the file names of a precision's graph and of its golden answers."""
    return (INT8_GRAPH, INT8_GOLDEN) if precision == "int8" else (GRAPH, GOLDEN)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's directory and its manifest. Opening a checkpoint reads only the manifest."""

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
        """Compare the named files, or all files, with their digests. Raises CheckpointCorruptError naming the first bad file."""
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

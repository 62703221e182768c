"""Publish a trained model as a checkpoint: files, golden answers and manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import random
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer
from twofold_checkpoint.checkpoint import GOLDEN, MEMORY, STATISTICS, TOKENIZER, Checkpoint
from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.encoding import Encoder, EncoderSettings
from twofold_checkpoint.examples import Example
from twofold_checkpoint.golden import GoldenAnswer, write_golden
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import FORMAT, Manifest, Provenance, ReducedGraph, Score
from twofold_checkpoint.memory import Memory, write_memory
from twofold_checkpoint.protocol.events import Event, NoteAdded, ParityMeasured, PhaseStarted, Published
from twofold_checkpoint.store import Store

from twofold_trainer.datasets.splits import Parts
from twofold_trainer.errors import GraftError, ParityError, TrainerError
from twofold_trainer.export.graft import graft
from twofold_trainer.export.memory import UpdatedMemory
from twofold_trainer.export.onnx_export import Graph, export, measure_parity, parity_batches
from twofold_trainer.export.quantization_gate import QuantizationInputs, reduce_precision
from twofold_trainer.modeling.model import Pooling, TwofoldModel, save_model
from twofold_trainer.protection.covariances import save_covariances
from twofold_trainer.recipe import Recipe
from twofold_trainer.stop import StopSignal

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "torch", "transformers")
PARITY_TEXTS = 64
GOLDEN_ANSWERS = 8
"""Texts with expected answers that an engine must reproduce before it serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trained model, with everything that its checkpoint's manifest records."""

    model: TwofoldModel
    tokenizer: Tokenizer
    settings: EncoderSettings
    labels: LabelSet
    kept: UpdatedMemory
    backbone: str
    pooling: Pooling
    provenance: Provenance
    scores: tuple[Score, ...]
    base: Checkpoint | None = None
    """The checkpoint that it was adapted from."""
    job_id: str | None = None


Gate = Callable[[Path], Generator[Event, None, str]]
"""Returns the reason why the candidate in a directory may be published; raises RejectedError if it may not."""


def publish_candidate(
    candidate: Candidate,
    store: Store,
    parts: Parts,
    memory: Memory,
    stop: StopSignal,
    *,
    gate: Gate | None = None,
    answered: Mapping[str, Prediction] | None = None,
) -> Generator[Event, None, tuple[Checkpoint, str]]:
    """Export a trained model, verify the graph, quantise it, and publish all as a checkpoint; returns it with the gate's reason.

    *parts* and *memory* contain the texts that verify the graphs; *answered* contains known predictions of the model.
    Raises ParityError or RejectedError, and then publishes nothing.
    """
    texts = [example.text for example in (*parts.gate, *parts.dev, *parts.train)]
    with store.staging() as staged:
        yield from write_candidate(candidate, staged, texts, stop)
        reason = "" if gate is None else (yield from gate(staged))
        inputs = QuantizationInputs(
            candidate.labels,
            Encoder(candidate.tokenizer, candidate.settings),
            held_out=(*memory.gate, *parts.gate, *memory.dev, *parts.dev),
            seed=candidate.provenance.seed,
            threads=torch.get_num_threads(),
            answered=answered or {},
        )
        reduced = yield from reduce_precision(inputs, staged, stop)
        stop.check()
        checkpoint = publish(candidate, staged, store, reduced)
    yield Published(checkpoint_id=checkpoint.id)
    return checkpoint, reason


def write_candidate(
    candidate: Candidate, staged: Path, texts: Sequence[str], stop: StopSignal
) -> Generator[Event, None, None]:
    """Write the candidate's files and verify that the graph matches the model. Raises ParityError."""
    stop.check()
    yield PhaseStarted(phase="export")
    save_model(candidate.model, staged)
    candidate.tokenizer.save(str(staged / TOKENIZER))
    write_memory(staged / MEMORY, candidate.kept.memory)
    if candidate.kept.statistics is not None:
        save_covariances(candidate.kept.statistics, staged / STATISTICS)
    encoder, pad_id = Encoder(candidate.tokenizer, candidate.settings), candidate.settings.pad_id
    shapes = parity_batches(texts[:PARITY_TEXTS], encoder)

    grafted = yield from _graft(candidate, staged)
    if not grafted:
        export(candidate.model, staged, max_tokens=candidate.settings.max_tokens)

    stop.check()
    yield PhaseStarted(phase="parity")

    def measure() -> tuple[Graph, ParityMeasured]:
        graph = Graph(staged, threads=torch.get_num_threads())
        return graph, measure_parity(candidate.model, graph, shapes, candidate.labels, pad_id)

    try:
        graph, measured = measure()
    except ParityError as error:
        if not grafted:
            raise
        yield _export_note(error)
        export(candidate.model, staged, max_tokens=candidate.settings.max_tokens)
        graph, measured = measure()
    yield measured
    answers = []
    # If no text may be stored, the golden answers are of generated texts.
    golden = (
        texts
        if candidate.kept.mode == "examples"
        else random_texts(candidate.tokenizer, seed=candidate.provenance.seed)
    )
    for encoding in encoder.encode(spread(golden, GOLDEN_ANSWERS)):
        (prediction,) = graph.predict([encoding], candidate.labels, pad_id)
        answers.append(GoldenAnswer(text=encoding.text, prediction=prediction))
    write_golden(staged / GOLDEN, answers)
    stop.check()


def _graft(candidate: Candidate, staged: Path) -> Generator[Event, None, bool]:
    """Build the candidate's graph from its base's graph; returns whether that was possible."""
    base = candidate.base
    if base is None:
        return False
    try:
        graft(base.path, base.manifest.branch, candidate.model, staged)
    except GraftError as error:
        yield _export_note(error)
        return False
    return True


def _export_note(error: TrainerError) -> NoteAdded:
    return NoteAdded(message=f"The base's graph could not be reused, so the model is exported: {error}.")


def publish(candidate: Candidate, staged: Path, store: Store, reduced: tuple[ReducedGraph, ...] = ()) -> Checkpoint:
    """Publish the written files as a checkpoint of the store."""
    now = datetime.now(UTC)
    config = candidate.model.config
    manifest = Manifest(
        format=FORMAT,
        id=f"{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}",
        parent=None if candidate.base is None else candidate.base.id,
        job_id=candidate.job_id,
        created=now.isoformat(timespec="milliseconds"),
        backbone=candidate.backbone,
        architecture=config.model_type,
        pooling=candidate.pooling,
        hidden_size=config.hidden_size,
        labels=candidate.labels,
        encoder=candidate.settings,
        scores=candidate.scores,
        provenance=candidate.provenance,
        files=(),
        branch=candidate.model.division,
        memory=candidate.kept.mode,
        reduced=reduced,
    )
    return store.publish(staged, manifest)


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Choose texts of all lengths, from the shortest to the longest."""
    ordered = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (count - 1))] for index in range(count)]


def random_texts(tokenizer: Tokenizer, *, seed: int) -> list[str]:
    """Generate texts of 1 to 12 random words of the vocabulary."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 1)
    rng = random.Random(seed)
    return [" ".join(rng.choices(words or ["a"], k=count)) for count in range(1, 13)]


def provenance(seed: int, examples: Sequence[Example], recipe: Recipe, **more: str | float) -> Provenance:
    """Return the record of how the model was trained."""
    lines = hashlib.sha256()
    for example in examples:
        lines.update(msgspec.json.encode(example) + b"\n")
    return Provenance(
        seed=seed,
        data_sha256=lines.hexdigest(),
        settings={**dataclasses.asdict(recipe), **more},
        versions={name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)},
    )


def _installed(name: str) -> bool:
    """Return whether a library is installed under this name; onnxruntime may be installed as onnxruntime-gpu."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

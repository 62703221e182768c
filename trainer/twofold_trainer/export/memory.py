"""Build the memory of a new checkpoint, for rehearsal, protection and evaluation in the next adaptation."""

from __future__ import annotations

from dataclasses import dataclass, field

from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.manifest import MemoryMode
from twofold_checkpoint.memory import Memory

from twofold_trainer.datasets.batching import chunks
from twofold_trainer.datasets.splits import Parts, add_to_memory
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.protection.covariances import Covariances, add_covariances, collect_covariances
from twofold_trainer.scoring.scorer import BATCH_SIZE


@dataclass(frozen=True, slots=True)
class UpdatedMemory:
    """The memory of a new checkpoint. Except in the mode "examples", it is empty and no text is stored."""

    mode: MemoryMode = "examples"
    memory: Memory = field(default_factory=Memory)
    statistics: Covariances | None = None
    """Covariances of the training data's activations, in the mode "statistics"."""


def update_memory(
    mode: MemoryMode,
    model: TwofoldModel,
    encoder: Encoder,
    *,
    memory: Memory,
    parts: Parts,
    seed: int,
    statistics: Covariances | None = None,
) -> UpdatedMemory:
    """Add the job's examples to the base's memory: its *memory* of examples, or its *statistics*."""
    if mode == "none":
        return UpdatedMemory(mode)
    remembered = add_to_memory(memory, parts, seed=seed)
    if mode == "examples":
        return UpdatedMemory(mode, remembered)
    encodings = encoder.encode([example.text for example in remembered.rehearsal])
    covariances = collect_covariances(model, model.blocks(), chunks(encodings, BATCH_SIZE), encoder.settings.pad_id)
    return UpdatedMemory(
        mode, statistics=covariances if statistics is None else add_covariances(statistics, covariances)
    )

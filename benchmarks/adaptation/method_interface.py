"""The interface of an adaptation method: what it adapts, what it trains on, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twofold_checkpoint.checkpoint import MEMORY, Checkpoint
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.examples import Example
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.memory import Memory, read_memory
from twofold_trainer.modeling.model import TwofoldModel, load_model

from benchmarks.adaptation.hyperparameters import DEFAULTS, Hyperparameters


@dataclass(frozen=True, slots=True)
class Learner:
    """Hold a model with everything that the next adaptation may use. *checkpoint* is None if it was never published."""

    model: TwofoldModel
    encoder: Encoder
    labels: LabelSet
    memory: Memory
    checkpoint: Checkpoint | None = None

    @property
    def pad_id(self) -> int:
        """The id that pads a batch."""
        return self.encoder.settings.pad_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Describe one adaptation. Its examples are annotated for *head* only.

    *replaces* says that the new names replace the old ones. *work* is a private directory of the run, the same in every
    step. All runs share the base's store, so a method that publishes copies it first.
    """

    head: HeadName
    replaces: bool
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    work: Path
    seed: int = 0
    hyperparameters: Hyperparameters = DEFAULTS


@dataclass(frozen=True, slots=True)
class AdaptationResult:
    """Hold the adapted learner, the gate's verdict if the method has a gate, and details for the results file."""

    learner: Learner
    verdict: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


Method = Callable[[Learner, Task], AdaptationResult]
"""An adaptation method. It may change the learner's model in place."""


def load_learner(checkpoint: Checkpoint) -> Learner:
    """Load a learner from a checkpoint."""
    return Learner(
        model=load_model(checkpoint),
        encoder=checkpoint.encoder(),
        labels=checkpoint.manifest.labels,
        memory=read_memory(checkpoint.path / MEMORY),
        checkpoint=checkpoint,
    )

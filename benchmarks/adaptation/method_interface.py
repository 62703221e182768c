"""What a row adapts, and what it is given to adapt it with."""

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

from benchmarks.adaptation.hyperparameters import DEFAULT, Rates


@dataclass(frozen=True, slots=True)
class Student:
    """Hold a model with all that the next adaptation may use. *checkpoint* is None where it was never published."""

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
    """Say what to learn. No example is annotated for another head than *head*.

    *replaces* tells that the new names take the old ones' place. *work* is a directory of the cell's own, the same in
    every step. The store of the base is shared by all cells: a row that publishes does so in a copy of its own.
    """

    head: HeadName
    replaces: bool
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    work: Path
    seed: int = 0
    rates: Rates = DEFAULT


@dataclass(frozen=True, slots=True)
class Adapted:
    """Hold what came of a task: the student to serve and build on, a verdict if the row has a gate, and more to note."""

    student: Student
    verdict: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


Row = Callable[[Student, Task], Adapted]
"""A way to adapt. It may change the student's model in place."""


def load_student(checkpoint: Checkpoint) -> Student:
    """Load what a checkpoint holds."""
    return Student(
        model=load_model(checkpoint),
        encoder=checkpoint.encoder(),
        labels=checkpoint.manifest.labels,
        memory=read_memory(checkpoint.path / MEMORY),
        checkpoint=checkpoint,
    )

"""Tasks: which outputs of the graph a request needs, and how they become answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from twofold_checkpoint.decoding import Floats, Prediction, merge_tokens, merge_windows
from twofold_checkpoint.encoding import Encoding

from twofold_server.inference.engine import FEATURE_OUTPUTS, HEAD_OUTPUTS, Engine, Output, Rows, decode_rows

T_co = TypeVar("T_co", covariant=True)


class Task(Protocol[T_co]):
    """Turns output rows into answers. Texts of a batch with equal tasks are decoded together."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs that a pass must compute."""

    def read(self, engine: Engine, encodings: Sequence[Encoding], rows: Sequence[Rows]) -> Sequence[T_co]:
        """Return one answer per text, given its encoding and the rows of *outputs* of its windows."""


@dataclass(frozen=True, slots=True)
class PredictTask:
    """Predicts the *top* labels (0: none) and, with *entities*, the entities."""

    top: int = 1
    entities: bool = True

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Both heads, since most of a pass is the encoder below them."""
        return HEAD_OUTPUTS

    def read(self, engine: Engine, encodings: Sequence[Encoding], rows: Sequence[Rows]) -> list[Prediction]:
        """Decode all texts in one call."""
        return decode_rows(encodings, rows, engine.labels, top=self.top, entities=self.entities)


@dataclass(frozen=True, slots=True)
class Embedding:
    """Features of one text: *pooled* (hidden,), *tokens* (tokens, hidden) at code-point *offsets* (tokens, 2)."""

    pooled: Floats
    tokens: Floats
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EmbedTask:
    """Returns the encoder features below the heads."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Features of the text and of its tokens."""
        return FEATURE_OUTPUTS

    def read(self, engine: Engine, encodings: Sequence[Encoding], rows: Sequence[Rows]) -> list[Embedding]:  # noqa: ARG002 -- the signature of Task.
        """Merge the windows of each text."""
        return [
            Embedding(
                merge_windows(encoding, [row[0] for row in windows]),
                merge_tokens(encoding, [row[1] for row in windows]),
                encoding.offsets,
            )
            for encoding, windows in zip(encodings, rows, strict=True)
        ]

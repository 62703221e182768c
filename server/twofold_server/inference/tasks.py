"""What a caller wants to know of a text: which outputs of the graph that takes, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from twofold_checkpoint.decoding import Floats, Prediction, merge_tokens, merge_windows
from twofold_checkpoint.encoding import Encoding

from twofold_server.inference.engine import FEATURE_OUTPUTS, HEAD_OUTPUTS, Engine, Output, Rows, decode

T_co = TypeVar("T_co", covariant=True)


class Task(Protocol[T_co]):
    """Read answers off output rows. Readers that are equal read the texts of a batch together."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that a pass must compute."""

    def read(self, engine: Engine, encodings: Sequence[Encoding], rows: Sequence[Rows]) -> Sequence[T_co]:
        """Return one answer for each text, given its encoding and its windows' rows of *outputs*."""


@dataclass(frozen=True, slots=True)
class PredictTask:
    """Read the *top* labels (with zero, none) and, if asked for, the entities."""

    top: int = 1
    entities: bool = True

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Both heads: most of a pass is the encoder below them."""
        return HEAD_OUTPUTS

    def read(self, engine: Engine, encodings: Sequence[Encoding], rows: Sequence[Rows]) -> list[Prediction]:
        """Decode all texts at once."""
        return decode(encodings, rows, engine.labels, top=self.top, entities=self.entities)


@dataclass(frozen=True, slots=True)
class Embedding:
    """Features of one text: *pooled* (hidden,), *tokens* (tokens, hidden) at code-point *offsets* (tokens, 2)."""

    pooled: Floats
    tokens: Floats
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EmbedTask:
    """Read the features below the heads."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Features, of the text and of its tokens."""
        return FEATURE_OUTPUTS

    def read(self, engine: Engine, encodings: Sequence[Encoding], rows: Sequence[Rows]) -> list[Embedding]:  # noqa: ARG002 -- as Reader has it.
        """Put each text's windows together."""
        return [
            Embedding(
                merge_windows(encoding, [row[0] for row in windows]),
                merge_tokens(encoding, [row[1] for row in windows]),
                encoding.offsets,
            )
            for encoding, windows in zip(encodings, rows, strict=True)
        ]

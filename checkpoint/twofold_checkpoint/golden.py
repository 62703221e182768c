"""Sample inputs with the trainer's predictions. An engine must reproduce them before it may serve."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.errors import CheckpointCorruptError

TOLERANCE = 1e-3
"""Maximum difference of a score. Labels and spans must be equal."""
REDUCED_TOLERANCE = 0.05
"""The maximum difference in reduced precision. CPUs round the last bit differently, which can move a value to the adjacent
int8 step."""
ISOLATION_TOLERANCE = 1e-5
"""Maximum difference between the scores of a text alone and in a batch."""


class GoldenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A text and its expected prediction: the best label and all entities."""

    text: str
    prediction: Prediction


def write_golden(path: str | os.PathLike[str], answers: Sequence[GoldenAnswer]) -> None:
    """Write the answers as JSON."""
    Path(path).write_bytes(msgspec.json.encode(tuple(answers)))


def read_golden(path: str | os.PathLike[str]) -> tuple[GoldenAnswer, ...]:
    """Read the answers. Raises CheckpointCorruptError."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=tuple[GoldenAnswer, ...])
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointCorruptError(f"{Path(path).name}: {error}") from error


def compare_golden(expected: Prediction, actual: Prediction, tolerance: float = TOLERANCE) -> str | None:
    """Describe the first difference between two predictions; None if they match."""
    names = [label.label for label in expected.labels], [label.label for label in actual.labels]
    if names[0] != names[1]:
        return f"label {names[1]} instead of {names[0]}"
    spans = [[(e.start, e.end, e.type) for e in answer.entities] for answer in (expected, actual)]
    if spans[0] != spans[1]:
        return f"entities {spans[1]} instead of {spans[0]}"
    scores = [
        [label.score for label in answer.labels] + [entity.score for entity in answer.entities]
        for answer in (expected, actual)
    ]
    # "not all(<=)" also rejects NaN.
    if not all(abs(old - new) <= tolerance for old, new in zip(*scores, strict=True)):
        return f"a score differs by more than {tolerance}"
    return None

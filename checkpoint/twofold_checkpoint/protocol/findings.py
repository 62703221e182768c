"""What a trainer found on the held-out examples, as a file beside the job: the part of a report that no event carries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from twofold_checkpoint.decoding import Entity
from twofold_checkpoint.examples import Span
from twofold_checkpoint.manifest import Branch, HeadName

FINDINGS = "findings.json"
"""Its name in the directory of the job."""
FigureName = Literal["protected", "retained", "new"]


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a value with a lower and an upper bound, each one-sided at 95 %. Shares are from 0 to 1."""

    value: float
    low: float
    high: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One of the three figures, before and after. *after* is None where nothing was trained."""

    figure: FigureName
    head: HeadName
    metric: Literal["accuracy", "f1"]
    examples: int
    before: Interval
    after: Interval | None = None
    difference: Interval | None = None
    """After minus before, on the same examples."""
    gained: int = 0
    """Examples that are answered better than before."""
    lost: int = 0
    calibration_before: float | None = None
    """Expected calibration error, from 0 to 1. None where nothing was found that could be right."""
    calibration_after: float | None = None


class NameCount(msgspec.Struct, frozen=True, kw_only=True):
    """What the held-out examples hold of one label or entity type, and what was answered, before and after."""

    figure: FigureName
    name: str
    expected: int
    answered_before: int
    right_before: int
    answered_after: int | None = None
    right_after: int | None = None


class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """How often one name was answered for another. None stands for no entity: one that was missed, or invented."""

    figure: FigureName
    expected: str | None
    answered: str | None
    before: int
    after: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint answers to a text, of the head that is judged. *score* is the label's."""

    label: str | None = None
    score: float | None = None
    entities: tuple[Entity, ...] | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A held-out example that is answered better than before, or worse: a fixed one, or a negative flip."""

    figure: FigureName
    better: bool
    text: str
    """Its beginning, where it is long."""
    before: Answer
    after: Answer
    label: str | None = None
    """What would be right, of a label."""
    entities: tuple[Span, ...] | None = None
    """What would be right, of the entities."""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all that the trainer found. Without *texts*, none is in it: the store promises to keep no text."""

    texts: bool
    figures: tuple[Measurement, ...] = ()
    names: tuple[NameCount, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    changes: tuple[Change, ...] = ()
    """The first of each kind."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Training texts by their number of tokens: the upper end of a range, and how many texts are in it."""
    branch: Branch | None = None
    """Blocks of the adapted head's own, as the trained model has them."""
    approved: str | None = None
    """The checkpoint that a person last approved, if it was compared with, too."""


def write_findings(directory: Path, findings: Findings) -> None:
    """Write findings.json, whole or not at all. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{FINDINGS}.new"
    temporary.write_bytes(msgspec.json.encode(findings))
    temporary.replace(directory / FINDINGS)


def read_findings(directory: str | os.PathLike[str]) -> Findings | None:
    """Read findings.json; None if there is none. Raises msgspec.DecodeError or OSError."""
    try:
        raw = (Path(directory) / FINDINGS).read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(raw, type=Findings)

"""The trainer's findings on held-out examples: a file in the job's directory, for the parts of a report that are not in events."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from twofold_checkpoint.decoding import Entity
from twofold_checkpoint.examples import Span
from twofold_checkpoint.manifest import Branch, HeadName

FINDINGS = "findings.json"
"""File name in the job's directory."""
FigureName = Literal["protected", "retained", "new"]


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A value with a lower and an upper bound, each one-sided at 95 %. Shares are from 0 to 1."""

    value: float
    low: float
    high: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One of the three scores, before and after. *after* is None if nothing was trained."""

    figure: FigureName
    head: HeadName
    metric: Literal["accuracy", "f1"]
    examples: int
    before: Interval
    after: Interval | None = None
    difference: Interval | None = None
    """Difference after minus before, on the same examples."""
    gained: int = 0
    """Number of examples that are answered better than before."""
    lost: int = 0
    calibration_before: float | None = None
    """Expected calibration error, from 0 to 1; None without predictions."""
    calibration_after: float | None = None


class NameCount(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one label or entity type in the held-out examples and in the answers, before and after."""

    figure: FigureName
    name: str
    expected: int
    answered_before: int
    right_before: int
    answered_after: int | None = None
    right_after: int | None = None


class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """How often one name was answered instead of another. None means no entity: a missed or an extra one."""

    figure: FigureName
    expected: str | None
    answered: str | None
    before: int
    after: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint's answer to a text, for the scored head. *score* is the probability of the label."""

    label: str | None = None
    score: float | None = None
    entities: tuple[Entity, ...] | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A held-out example whose answer is better than before (fixed) or worse (a negative flip)."""

    figure: FigureName
    better: bool
    text: str
    """The text, truncated if it is long."""
    before: Answer
    after: Answer
    label: str | None = None
    """The correct label."""
    entities: tuple[Span, ...] | None = None
    """The correct entities."""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All findings. *texts* is False if the store may not contain any text; then no change is listed."""

    texts: bool
    figures: tuple[Measurement, ...] = ()
    names: tuple[NameCount, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    changes: tuple[Change, ...] = ()
    """The first changes of each kind."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Histogram of the token counts of training texts: (upper end of the range, number of texts)."""
    branch: Branch | None = None
    """Fork of the trained model."""
    approved: str | None = None
    """The checkpoint that a person last approved, if the gate compared with it."""


def write_findings(directory: Path, findings: Findings) -> None:
    """Write findings.json atomically. Raises OSError."""
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

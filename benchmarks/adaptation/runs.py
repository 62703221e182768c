"""One scenario under one row with one seed: what was measured, and whether it has to be measured again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a score before a step and after it, from 0 to 1."""

    before: float
    after: float

    @property
    def loss(self) -> float:
        """How much was lost."""
        return self.before - self.after


class StepScores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold what the scorer says of one step. *retained* is None where the step replaced the adapted head's names.

    Entities count if their type was looked for in the test set; the scores in *strict* count every predicted entity,
    also those of types that the texts are not annotated for.
    """

    name: str = ""
    new: Change
    protected: Change
    retained: Change | None = None
    earlier: dict[str, float] = {}
    """Scores after this step on the test sets of the steps before it."""
    negative_flips: float = 0
    """Protected answers that were right before this step and are wrong after it."""
    positive_flips: float = 0
    changed: int = 0
    """Texts whose protected answer is another one."""
    strict: dict[str, Change] = {}
    verdict: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    more: dict[str, Any] = {}
    """What the row itself notes, such as the largest difference of a protected logit (`logit_diff`)."""


class Cell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold one cell of the table. *error* says why there are no scores, if there are none."""

    scenario: str
    row: str
    size: str
    digest: str
    """Of the settings: a cell with another digest is out of date."""
    settings: dict[str, Any]
    seed: int = 0
    """Of the adaptation; the base is the same for all."""
    base_weights: str = ""
    """Digest of the weights that it began with, which may differ where the base was trained again."""
    steps: tuple[StepScores, ...] = ()
    verdict: str | None = None
    seconds: float = 0.0
    """Wall-clock time of all adaptations, without any scoring."""
    cpu_seconds: float = 0.0
    peak_memory_mib: float = 0.0
    wall_seconds: float = 0.0
    """The same of the whole cell, to guess how long others will take."""
    error: str | None = None


def digest_settings(settings: Mapping[str, Any]) -> str:
    """Return sixteen hexadecimal digits over the settings."""
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()[:16]

"""One run of a method: a scenario, a method and a seed, with its settings and its scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a score from 0 to 1 before and after a step."""

    before: float
    after: float

    @property
    def loss(self) -> float:
        """How much the score dropped."""
        return self.before - self.after


class StepScores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold the scores of one step. *retained* is None if the step replaced the names of the adapted head.

    Entities count only if the test set was annotated for their type; the scores in *strict* count every predicted entity.
    """

    name: str = ""
    new: Change
    protected: Change
    retained: Change | None = None
    earlier: dict[str, float] = {}
    """Scores after this step on the test sets of earlier steps."""
    negative_flips: float = 0
    """Protected answers that were right before this step and are wrong after it."""
    positive_flips: float = 0
    changed: int = 0
    """Texts whose protected answer differs after the step."""
    strict: dict[str, Change] = {}
    verdict: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    details: dict[str, Any] = {}
    """What the method reports, such as the largest difference of a protected logit (`logit_diff`)."""


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold one run. *error* says why there are no scores."""

    scenario: str
    method: str
    size: str
    digest: str
    """Digest of the settings. A run with another digest is out of date."""
    settings: dict[str, Any]
    seed: int = 0
    """Seed of the adaptation; all seeds start from the same base."""
    base_weights: str = ""
    """Digest of the base's weights, which may differ if the base was trained again."""
    steps: tuple[StepScores, ...] = ()
    verdict: str | None = None
    seconds: float = 0.0
    """Wall-clock time of all adaptations, without scoring."""
    cpu_seconds: float = 0.0
    peak_memory_mib: float = 0.0
    wall_seconds: float = 0.0
    """Wall-clock time of the whole run, to estimate the time of further runs."""
    error: str | None = None


def digest_settings(settings: Mapping[str, Any]) -> str:
    """Return the first sixteen hexadecimal digits of the SHA-256 of the settings."""
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()[:16]

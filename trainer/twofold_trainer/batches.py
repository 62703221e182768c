"""The order in which examples are trained on. All choices come from one seeded generator."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from twofold_trainer.targets import Target

BUCKET = 16
"""Batches whose texts are sorted by length together: most of the padding goes, most of the chance stays."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pool:
    """Hold what an epoch draws from: all of *new*, and *ratio* times as many of *rehearsed*, while there are so many."""

    new: tuple[Target, ...]
    rehearsed: tuple[Target, ...] = ()
    ratio: float = 0.0

    @property
    def epoch_size(self) -> int:
        """How many texts an epoch has."""
        return len(self.new) + self._drawn

    @property
    def _drawn(self) -> int:
        return min(len(self.rehearsed), round(self.ratio * len(self.new)))

    def epoch(self, chance: random.Random) -> list[Target]:
        """Draw one epoch's texts."""
        return [*self.new, *chance.sample(self.rehearsed, self._drawn)]


def cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in order, *size* at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def batches(targets: Sequence[Target], size: int, chance: random.Random) -> Iterator[list[Target]]:
    """Yield the texts in batches of similar lengths, in a shuffled order."""
    order = list(targets)
    chance.shuffle(order)
    cut: list[list[Target]] = []
    for first in range(0, len(order), size * BUCKET):
        bucket = sorted(order[first : first + size * BUCKET], key=lambda target: len(target.encoding.ids))
        cut.extend(bucket[start : start + size] for start in range(0, len(bucket), size))
    chance.shuffle(cut)
    yield from cut

"""What is known of each time that an alias moved."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from twofold_checkpoint.store import ALIASES, Alias, AliasUpdate

SERVER = "server"
"""Who did what nobody asked for at that moment: retention, and undoing a bad swap."""
OUTSIDE = "outside"
"""Who moved an alias while no server could write that down: a trainer that made the first checkpoint, for one."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who moves aliases, a token's name, a job's id or "server", and why, as a sentence."""

    who: str
    why: str


@dataclass(frozen=True, slots=True)
class AliasChange:
    """Say that an alias moved. It is numbered in the order of writing; None stands for no checkpoint."""

    number: int
    time: dt.datetime
    alias: str
    from_id: str | None
    to_id: str | None
    author: Author


def changed_aliases(move: AliasUpdate) -> Iterator[tuple[Alias, str | None, str | None]]:
    """Yield each alias that moved, with what it named before and after."""
    for alias in ALIASES:
        before, after = (getattr(aliases, alias) for aliases in move)
        if before != after:
            yield alias, before, after

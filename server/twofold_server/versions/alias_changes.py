"""Alias changes: the entries of the alias history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from twofold_checkpoint.store import ALIASES, Alias, AliasUpdate

SERVER = "server"
"""Author of automatic changes: retention, and rollback of a bad checkpoint."""
OUTSIDE = "outside"
"""Author of changes that no server recorded, for example by the trainer that created the first checkpoint."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes an alias (the name of a token, the id of a job, or "server"), and the reason, as a sentence."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class AliasChange:
    """One change of an alias. *number* is the order of recording; an id of None means no checkpoint."""

    number: int
    time: dt.datetime
    alias: str
    from_id: str | None
    to_id: str | None
    author: Author


def changed_aliases(update: AliasUpdate) -> Iterator[tuple[Alias, str | None, str | None]]:
    """Yield each alias that changed, with the checkpoint id before and after."""
    for alias in ALIASES:
        before, after = (getattr(aliases, alias) for aliases in update)
        if before != after:
            yield alias, before, after

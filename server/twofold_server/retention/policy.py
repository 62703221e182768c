"""What may go, decided without touching anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from twofold_checkpoint.store import ALIASES, Aliases

from twofold_server.jobs.model import JobView

GRACE_SECONDS = 3600.0
"""What is younger stays whatever the limit: a data set's job may be on its way, a candidate's promotion, too."""


@dataclass(frozen=True, slots=True)
class Retained:
    """A checkpoint, a job that is over, or a data set, and since when it is there, in seconds since 1970."""

    id: str
    since: float


def surplus(items: Iterable[Retained], *, keep: int, needed: Collection[str], now: float) -> list[str]:
    """Return the ids of what may go, oldest first: all but the newest *keep* of those that nothing needs.

    If *keep* is 0, nothing goes. What is needed, or younger than the grace, stays, and takes no place of the others.
    """
    if not keep:
        return []
    free = [item for item in items if item.id not in needed and now - item.since >= GRACE_SECONDS]
    free.sort(key=lambda item: (item.since, item.id))
    return [item.id for item in free[: max(0, len(free) - keep)]]


def needed_checkpoints(jobs: Iterable[JobView], aliases: Aliases, live: str | None) -> set[str]:
    """Return the checkpoints that answer, that an alias names, or that a job which waits or runs needs."""
    named = {getattr(aliases, alias) for alias in ALIASES}
    return {name for name in {live, *named} if name} | {name for job in jobs for name in needs_of(job, aliases)}


def needs_of(job: JobView, aliases: Aliases) -> set[str]:
    """Return the checkpoints that a job builds on or has made."""
    base = job.order.base  # Of a job that waits, an alias is what it will build on, wherever it moves.
    builds_on = getattr(aliases, base) if base in ALIASES else base
    return {name for name in (builds_on, job.base, job.candidate) if name}

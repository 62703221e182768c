"""Retention policy as pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from twofold_checkpoint.store import ALIASES, Aliases

from twofold_server.jobs.model import Job

GRACE_SECONDS = 3600.0
"""Younger items are never removed: a data set may be about to get its job, a candidate its promotion."""


@dataclass(frozen=True, slots=True)
class Retained:
    """A checkpoint, finished job or data set, and its creation or end time in seconds since 1970."""

    id: str
    since: float


def expired(items: Iterable[Retained], *, keep: int, needed: Collection[str], now: float) -> list[str]:
    """Return the ids to remove, oldest first: all removable items except the newest *keep*.

    If *keep* is 0, nothing is removed. Needed items and items younger than GRACE_SECONDS stay and do not count towards *keep*.
    """
    if not keep:
        return []
    removable = [item for item in items if item.id not in needed and now - item.since >= GRACE_SECONDS]
    removable.sort(key=lambda item: (item.since, item.id))
    return [item.id for item in removable[: max(0, len(removable) - keep)]]


def needed_checkpoints(jobs: Iterable[Job], aliases: Aliases, live: str | None) -> set[str]:
    """Return the ids of checkpoints that are live, named by an alias, or needed by an unfinished job."""
    named = {getattr(aliases, alias) for alias in ALIASES}
    return {name for name in {live, *named} if name} | {
        name for job in jobs for name in required_checkpoints(job, aliases)
    }


def required_checkpoints(job: Job, aliases: Aliases) -> set[str]:
    """Return the ids of the base and candidate checkpoints of a job."""
    base = job.spec.base  # A queued job resolves its alias only when it starts.
    resolved_base = getattr(aliases, base) if base in ALIASES else base
    return {name for name in (resolved_base, job.base, job.candidate) if name}

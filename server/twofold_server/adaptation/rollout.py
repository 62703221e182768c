"""Rollout of a candidate that passed the gate: set the alias, run the shadow test, promote."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.events import NoteAdded, PhaseStarted
from twofold_checkpoint.store import Store

from twofold_server.adaptation.outcomes import base_changed, not_promoted, rejected_in_shadow
from twofold_server.errors import BaseChangedError, DatabaseError, ServerError
from twofold_server.jobs.model import Job, StateEntered, Swapped
from twofold_server.jobs.repository import JobRepository
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.events import Shadowed
from twofold_server.versions.promoter import Promotion
from twofold_server.versions.shadow_test import ShadowTest

log = logging.getLogger(__name__)


class CandidatePromoter(Protocol):
    """Promotes candidates."""

    async def promote(self, name: str, author: Author, *, adapted: HeadName, expected_current: str | None) -> Promotion:
        """Make a checkpoint live, and return once it serves. After any error the old checkpoint stays live.

        Raises SwapError, CheckpointError, or BaseChangedError if *expected_current* is given and another checkpoint is current.
        """


class CandidateRollout:
    """Rolls out a job's candidate: promotes it, leaves it for manual promotion, or rejects it."""

    def __init__(
        self, store: Store, jobs: JobRepository, promoter: CandidatePromoter, shadow_test: ShadowTest | None
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._promoter = promoter
        self._shadow = shadow_test

    async def run(self, job: Job, ending: StateEntered, interrupted: Callable[[], StateEntered | None]) -> StateEntered:
        """Set the candidate alias, promote the candidate if requested, and return the final state of the job.

        *ending* is the state on success. *interrupted* returns the state of a cancelled or stopped job, else None.
        """
        try:
            # First, so that a candidate that cannot go live still has an alias.
            author = Author(job.id, "The gate passed it.")
            nomination = await asyncio.to_thread(self._store.set_candidate, job.candidate)
            await self._jobs.record_alias_change(nomination, author)
            if job.spec.promote == "manual":
                return ending
            base = job.base if job.spec.base == "current" else None
            if base and nomination.after.current != base:
                return not_promoted(job.candidate, base_changed(base, nomination.after.current))
            if failed := await self._shadow_test(job, interrupted):
                return failed
            await self._jobs.append_event(job.id, PhaseStarted(phase="swap"))
            promotion = await self._promoter.promote(
                job.candidate, author, adapted=job.spec.request.head, expected_current=base
            )
        except BaseChangedError as error:
            return not_promoted(job.candidate, base_changed(job.base, error.current))
        except (CheckpointError, ServerError, OSError) as error:
            return not_promoted(job.candidate, str(error))
        except Exception as error:
            log.exception("promotion failed", extra={"job": job.id, "checkpoint": job.candidate})
            return not_promoted(job.candidate, f"unexpected {type(error).__name__}; see the server's log")
        await self._jobs.append_event(job.id, Swapped(checkpoint_id=job.candidate, seconds=promotion.seconds))
        return ending

    async def _shadow_test(self, job: Job, interrupted: Callable[[], StateEntered | None]) -> StateEntered | None:
        """Run the shadow test if requested, and return the final state if the candidate must not go live, else None."""
        requested = job.spec.shadow_share
        if self._shadow is None or not (share := self._shadow.default_share if requested is None else requested):
            return None
        await self._jobs.append_event(job.id, PhaseStarted(phase="shadow"))

        async def report(seen: Shadowed) -> None:
            # A lost progress event must not fail the job; the final result must be stored.
            with suppress(DatabaseError):
                await self._jobs.append_event(job.id, seen)

        done = await self._shadow.run(
            job.candidate,
            share,
            job.spec.request.head,
            is_cancelled=lambda: interrupted() is not None,
            on_progress=report,
        )
        if done is not None:
            await self._jobs.append_event(job.id, done.seen)
            if done.regression:
                return rejected_in_shadow(job.candidate, done.regression.message)
            if done.seen.texts < (fewest := self._shadow.min_samples):
                message = f"Compared only {done.seen.texts} live texts in the shadow test; a decision needs at least {fewest}."
                await self._jobs.append_event(job.id, NoteAdded(message=message, warning=True))
        return interrupted()

"""What becomes of a candidate that the gate has passed: nominated, tried in shadow, made live."""

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
from twofold_server.config.settings import Config
from twofold_server.errors import BaseChangedError, DatabaseError, ServerError
from twofold_server.jobs.model import JobView, StateEntered, Swapped
from twofold_server.jobs.repository import JobRepository
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.events import Shadowed
from twofold_server.versions.shadow_test import ShadowTest

log = logging.getLogger(__name__)


class Promoter(Protocol):
    """Whoever can make a checkpoint live."""

    async def promote(self, name: str, author: Author, *, adapted: HeadName, expected_current: str | None) -> Promotion:
        """Make it live, and return when it answers. The old one serves on after any error.

        Raises SwapError, CheckpointError, or BaseChangedError if the one that it would replace is not *over*.
        """


class Promotion(Protocol):
    """What a promotion says of itself."""

    @property
    def seconds(self) -> float:
        """How long the change took."""


class CandidateRollout:
    """Follow a job's candidate to its end: it answers, or it waits for a person, or it is refused."""

    def __init__(
        self, store: Store, book: JobRepository, promoter: Promoter, auditions: ShadowTest | None, config: Config
    ) -> None:
        self._store = store
        self._book = book
        self._promoter = promoter
        self._auditions = auditions
        self._config = config

    async def follow(
        self, view: JobView, ending: StateEntered, interrupted: Callable[[], StateEntered | None]
    ) -> StateEntered:
        """Nominate the candidate, and let it answer if that was asked for; return how the job ends.

        *ending* is how it does if all goes well, *interrupted* how it does if it is not to go on.
        """
        try:
            # First of all, so that a candidate that cannot be made live can still be found by its alias.
            author = Author(view.id, "The gate passed it.")
            nomination = await asyncio.to_thread(self._store.set_candidate, view.candidate)
            await self._book.record(nomination, author)
            if view.order.promote == "manual":
                return ending
            base = view.base if view.order.base == "current" else None
            if base and nomination.after.current != base:
                return not_promoted(view.candidate, base_changed(base, nomination.after.current))
            if failed := await self._audition(view, interrupted):
                return failed
            await self._book.say(view.id, PhaseStarted(phase="swap"))
            promotion = await self._promoter.promote(
                view.candidate, author, adapted=view.order.head, expected_current=base
            )
        except BaseChangedError as error:
            return not_promoted(view.candidate, base_changed(view.base, error.current))
        except (CheckpointError, ServerError, OSError) as error:
            return not_promoted(view.candidate, str(error))
        except Exception as error:
            log.exception("promotion failed", extra={"job": view.id, "checkpoint": view.candidate})
            return not_promoted(view.candidate, f"unexpected {type(error).__name__}; the server's log says more")
        await self._book.say(view.id, Swapped(checkpoint_id=view.candidate, seconds=promotion.seconds))
        return ending

    async def _audition(self, view: JobView, interrupted: Callable[[], StateEntered | None]) -> StateEntered | None:
        """Try the candidate in shadow, if that was asked for, and return how the job ends if it must not be made live."""
        requested = view.order.shadow_share
        share = self._config.shadow_share if requested is None else requested
        if not share or self._auditions is None:
            return None
        await self._book.say(view.id, PhaseStarted(phase="shadow"))

        async def tell(seen: Shadowed) -> None:
            with suppress(DatabaseError):  # A word on the way is not worth a job; the last one is.
                await self._book.say(view.id, seen)

        done = await self._auditions.run(
            view.candidate,
            share,
            view.order.head,
            is_cancelled=lambda: interrupted() is not None,
            on_progress=tell,
        )
        if done is not None:
            await self._book.say(view.id, done.seen)
            if done.regression:
                return rejected_in_shadow(view.candidate, done.regression.message)
            if done.seen.texts < (fewest := self._config.watch_fewest):
                message = (
                    f"Only {done.seen.texts} live texts were compared in shadow; fewer than {fewest} decide nothing."
                )
                await self._book.say(view.id, NoteAdded(message=message, warning=True))
        return interrupted()

"""Promotion: make a checkpoint live without losing a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.errors import CheckpointNotFoundError
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.store import AliasUpdate, Store

from twofold_server.config.settings import EngineSettings, RollbackSettings
from twofold_server.errors import BaseChangedError, FailedPreconditionError, SwapError
from twofold_server.inference.engine import Engine, EngineState
from twofold_server.inference.slot import Slot
from twofold_server.observability.metrics import Metrics
from twofold_server.resources.cancellation import run_to_completion
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.loader import load_engine
from twofold_server.versions.observer import Swap
from twofold_server.versions.shadow_traffic import EnginePair

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Promotion:
    """Result of a promotion: the live checkpoint, the id of the replaced one (or empty), and the duration in seconds."""

    checkpoint: Checkpoint
    replaced_id: str
    seconds: float


class SwapListener(Protocol):
    """A listener for swaps, which may use the live and the standby engine."""

    def begin(self, swap: Swap, rollback: Callable[[str, Author], Awaitable[str]]) -> None:
        """Monitor a swap that was just made; *rollback* reverts it."""

    async def end(self) -> None:
        """Stop using both engines."""


class Promoter:
    """Changes the aliases of a store and the live engine of a slot together, one promotion at a time.

    A promotion runs to completion even if its caller is cancelled; otherwise alias and engine could differ. *on_live* is
    awaited after each swap. *swap_listener* monitors each swap, and is stopped before the next engine is loaded, so that there
    are never three engines. *record* records alias changes and must not raise.
    """

    def __init__(
        self,
        store: Store,
        slot: Slot,
        engine_settings: EngineSettings,
        rollback: RollbackSettings,
        metrics: Metrics,
        *,
        on_live: Callable[[], Awaitable[None]],
        swap_listener: SwapListener,
        record: Callable[[AliasUpdate, Author], Awaitable[None]],
    ) -> None:
        self._store = store
        self._slot = slot
        self._engine_settings = engine_settings
        self._rollback = rollback
        self._metrics = metrics
        self._on_live = on_live
        self._swap_listener = swap_listener
        self._lock = asyncio.Lock()
        self._record = record

    async def promote(
        self,
        name: str,
        author: Author,
        *,
        approve: bool = False,
        adapted: HeadName | None = None,
        expected_current: str | None = None,
    ) -> Promotion:
        """Make the checkpoint with an id or alias live.

        *approve*: a person chose the checkpoint. *adapted*: the head that the job adapted. *expected_current*: the id of the
        checkpoint to replace; raises BaseChangedError if another one is current. After this returns, the new checkpoint
        answers every new request. If a step fails, the old checkpoint stays live, and SwapError or CheckpointError names the
        step.
        """
        return await run_to_completion(
            self._promote(name, author, approve=approve, adapted=adapted, expected_current=expected_current)
        )

    async def roll_back(self, author: Author) -> Promotion:
        """Make the previous checkpoint live. Raises FailedPreconditionError if there is none, and the errors of promote()."""
        try:
            return await run_to_completion(self._promote("previous", author, approve=True))
        except CheckpointNotFoundError as error:
            raise FailedPreconditionError(f"cannot roll back: {error}") from error

    async def roll_back_from(self, checkpoint_id: str, author: Author) -> str:
        """Roll back from a bad checkpoint to the previous one, and return the id of that.

        Raises CheckpointNotFoundError if another checkpoint is live by now, and the errors of promote().
        """
        return (await run_to_completion(self._roll_back_from(checkpoint_id, author))).checkpoint.id

    async def load_standby(self, name: str) -> EnginePair | None:
        """Load a checkpoint as the standby engine, to compare it with the live one.

        Returns None if there is no live engine, or if it has the same checkpoint. The next promotion ends the comparison.
        Raises the errors of promote().
        """
        async with self._lock:
            with self._count_failures(name):
                live, checkpoint = self._slot.live, await asyncio.to_thread(self._store.get, name)
                if live is None or live.id == checkpoint.id:
                    return None
                await self._swap_listener.end()
                await asyncio.to_thread(self._slot.release_standby)
                engine = await asyncio.to_thread(load_engine, checkpoint, self._engine_settings, live)
                self._slot.set_standby(engine)
                return EnginePair(engine, live, self._rollback.max_slowdown)

    async def release_standby(self, pair: EnginePair) -> None:
        """Release the subject of a pair if it is still the standby engine."""
        async with self._lock:
            await asyncio.to_thread(self._slot.release_standby, pair.subject)

    async def stop(self) -> None:
        """Wait until the running promotions have ended."""
        async with self._lock:
            pass

    async def _promote(
        self,
        name: str,
        author: Author,
        *,
        approve: bool,
        adapted: HeadName | None = None,
        expected_current: str | None = None,
    ) -> Promotion:
        async with self._lock:
            current = (await asyncio.to_thread(self._store.aliases)).current
            # *name* itself may be current: a person may have promoted it meanwhile.
            if expected_current is not None and current not in {expected_current, name}:
                raise BaseChangedError(current)
            with self._count_failures(name):
                checkpoint = await asyncio.to_thread(self._store.get, name)

                def update_aliases() -> AliasUpdate:
                    return self._store.promote(checkpoint.id, approve=approve)

                live = self._slot.live
                if live is not None and live.id == checkpoint.id:
                    # The aliases differ from it if the server started with an older checkpoint.
                    await self._update_aliases(checkpoint, update_aliases, author)
                    return Promotion(checkpoint, checkpoint.id, 0.0)
                # A rollback needs no monitoring.
                is_monitored = name != "previous" and self._rollback.seconds > 0
                keep_standby = is_monitored and self._rollback.share > 0
                promotion, old = await self._swap(checkpoint, update_aliases, author, keep_standby=keep_standby)
                if is_monitored and self._slot.live is not None:
                    reference = old if keep_standby else None
                    self._swap_listener.begin(
                        Swap(self._slot.live, reference, author, by_person=approve, adapted=adapted),
                        self.roll_back_from,
                    )
                return promotion

    async def _roll_back_from(self, checkpoint_id: str, author: Author) -> Promotion:
        async with self._lock:
            with self._count_failures(checkpoint_id):
                live = self._slot.live
                if live is None or live.id != checkpoint_id:
                    raise CheckpointNotFoundError(f"{checkpoint_id} is no longer live")
                previous = await asyncio.to_thread(self._store.get, "previous")
                promotion, _ = await self._swap(
                    previous, lambda: self._store.undo(checkpoint_id), author, keep_standby=False
                )
                return promotion

    @contextmanager
    def _count_failures(self, name: str) -> Iterator[None]:
        """Count a promotion that fails."""
        try:
            yield
        except CheckpointNotFoundError:  # An unknown name is an error of the caller, not a failed promotion.
            raise
        except Exception as error:
            self._metrics.swaps.labels("failed").inc()
            log.warning("promotion failed", extra={"checkpoint": name, "reason": str(error)}, exc_info=error)
            raise

    async def _swap(
        self, checkpoint: Checkpoint, update_aliases: Callable[[], AliasUpdate], author: Author, *, keep_standby: bool
    ) -> tuple[Promotion, Engine | None]:
        started_at = time.monotonic()
        await self._swap_listener.end()
        standby = self._slot.standby
        is_standby = standby is not None and standby.id == checkpoint.id
        if standby is not None and is_standby:
            engine = standby
        else:
            await asyncio.to_thread(self._slot.release_standby)
            engine = await asyncio.to_thread(load_engine, checkpoint, self._engine_settings, self._slot.live)
        try:
            # Aliases first: changing them can fail, and no later step can.
            await self._update_aliases(checkpoint, update_aliases, author)
        except BaseException:
            if is_standby:
                await asyncio.to_thread(self._slot.release_standby)
            else:
                await asyncio.to_thread(engine.close, EngineState.FAILED)
            raise
        old = self._slot.swap(engine, keep_standby=keep_standby)
        await self._on_live()
        seconds = time.monotonic() - started_at
        self._metrics.swaps.labels("succeeded").inc()
        self._metrics.swap_seconds.observe(seconds)
        replaced = "" if old is None else old.id
        log.info("promoted", extra={"checkpoint": checkpoint.id, "replaced": replaced, "seconds": round(seconds, 3)})
        return Promotion(checkpoint, replaced, seconds), old

    async def _update_aliases(
        self, checkpoint: Checkpoint, update_aliases: Callable[[], AliasUpdate], author: Author
    ) -> None:
        try:
            update = await asyncio.to_thread(update_aliases)
        except OSError as error:
            raise SwapError(f"{checkpoint.id}: aliases: cannot be written: {error.strerror}") from error
        await self._record(update, author)

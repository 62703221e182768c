"""Automatic rollback: monitor a new live checkpoint for a while, and restore the previous one if it is bad. See ADR 27."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from twofold_checkpoint.errors import CheckpointError

from twofold_server.config.settings import RollbackSettings
from twofold_server.errors import ServerError
from twofold_server.inference.slot import Slot
from twofold_server.observability import audit
from twofold_server.observability.metrics import Metrics
from twofold_server.versions.alias_changes import SERVER, Author
from twofold_server.versions.analysis import Regression, SwapStats, find_regression
from twofold_server.versions.events import RolledBack
from twofold_server.versions.observer import Swap, SwapObserver
from twofold_server.versions.shadow_traffic import EnginePair, ShadowTraffic

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
"""Seconds between two checks of the statistics."""


Rollback = Callable[[str, Author], Awaitable[str]]
"""Replaces the given checkpoint by the previous one, and returns the id of that."""


class RollbackMonitor:
    """Monitors one swap at a time: errors, latency, and agreement with the previous checkpoint.

    A checkpoint that a person promoted is rolled back for errors only, since a different model may answer differently and
    take longer. *on_rollback* is awaited with the id of the job that created the bad checkpoint, and the event.
    """

    def __init__(
        self,
        settings: RollbackSettings,
        slot: Slot,
        shadow: ShadowTraffic,
        metrics: Metrics,
        *,
        on_rollback: Callable[[str, RolledBack], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._slot = slot
        self._shadow = shadow
        self._metrics = metrics
        self._observer: SwapObserver | None = None
        self._task: asyncio.Task[None] | None = None
        self._rollbacks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._on_rollback = on_rollback

    def begin(self, swap: Swap, rollback: Rollback) -> None:
        """Monitor a swap that was just made, unless monitoring is turned off; *rollback* reverts it."""
        if self._stopped or not self._settings.seconds:
            return
        observer = self._observer = SwapObserver(swap.subject.id)
        if swap.reference is not None:
            pair = EnginePair(swap.subject, swap.reference, self._settings.max_slowdown)
            self._shadow.begin(pair, self._settings.share, observer.record_comparison)
        self._task = asyncio.create_task(self._monitor(swap, observer, rollback), name="rollback-monitor")

    async def end(self) -> None:
        """Stop monitoring. Afterwards the standby engine is not in use."""
        task, self._task, self._observer = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(self._shadow.end)

    async def stop(self) -> None:
        """Stop monitoring for good, and wait for running rollbacks."""
        self._stopped = True
        await self.end()
        await asyncio.gather(*self._rollbacks)

    def batch_finished(self, checkpoint_id: str, *, seconds: float | None, failed: bool) -> None:  # noqa: ARG002 -- a BatchListener.
        """Count a live batch. Thread-safe."""
        observer = self._observer
        if observer is not None and observer.engine_id == checkpoint_id:
            observer.record_batch(failed=failed)

    async def _monitor(self, swap: Swap, observer: SwapObserver, rollback: Rollback) -> None:
        end = asyncio.get_running_loop().time() + self._settings.seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_POLL_SECONDS)
            stats = SwapStats(passes=observer.stats.passes) if swap.by_person else observer.stats
            if regression := find_regression(stats, self._settings, swap.adapted):
                # A separate task, because the rollback ends this one.
                task = asyncio.create_task(self._roll_back(swap, regression, rollback), name="rollback")
                self._rollbacks.add(task)
                task.add_done_callback(self._rollbacks.discard)
                return
        stats = observer.stats
        log.info(
            "monitoring ended without a regression",
            extra={"checkpoint": swap.subject.id, "passes": stats.passes.total, "compared": stats.texts.total},
        )
        self._observer = None
        await asyncio.to_thread(self._shadow.end)
        if swap.reference is not None:  # Another engine may be on standby by now; it must stay.
            await asyncio.to_thread(self._slot.release_standby, swap.reference)

    async def _roll_back(self, swap: Swap, regression: Regression, rollback: Rollback) -> None:
        bad = swap.subject.id
        try:
            restored = await rollback(bad, Author(SERVER, f"{bad} was rolled back: {regression.message}."))
        except (CheckpointError, ServerError) as error:
            log.error("rollback failed", extra={"checkpoint": bad, "reason": str(error)})  # noqa: TRY400 -- no bug of ours.
            return
        self._metrics.swap_rollbacks.labels(regression.cause).inc()
        audit.log_audit("roll back", actor=SERVER, outcome="OK", checkpoint=restored, reason=regression.cause)
        log.error("rolled back", extra={"checkpoint": bad, "restored": restored, "reason": regression.message})
        event = RolledBack(checkpoint_id=bad, restored_id=restored, cause=regression.cause, reason=regression.message)
        if swap.job_id:
            await self._on_rollback(swap.job_id, event)

"""A checkpoint that was made live is watched for a while; if it is bad, the one before comes back by itself. See ADR 27."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from twofold_checkpoint.errors import CheckpointError

from twofold_server.config.settings import Config
from twofold_server.errors import ServerError
from twofold_server.inference.slot import Slot
from twofold_server.observability import audit
from twofold_server.observability.metrics import Metrics
from twofold_server.versions.alias_changes import SERVER, Author
from twofold_server.versions.analysis import Regression, SwapStats, find_regression
from twofold_server.versions.events import RolledBack
from twofold_server.versions.observer import Swap, SwapObserver, limits_of, pair_of
from twofold_server.versions.shadow_traffic import ShadowTraffic

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
"""Time between two looks at what was seen."""


Rollback = Callable[[str, Author], Awaitable[str]]
"""Makes the previous checkpoint live in place of the given one, and returns its id."""


class RollbackMonitor:
    """Watch one swap at a time: its errors, its pace, and whether it agrees with the checkpoint before.

    A checkpoint that a person promoted is rolled back for errors only: a different model may answer differently and take
    longer. *on_rollback* is awaited with the id of the job that made the bad checkpoint and what was done.
    """

    def __init__(
        self,
        config: Config,
        slot: Slot,
        shadow: ShadowTraffic,
        metrics: Metrics,
        *,
        on_rollback: Callable[[str, RolledBack], Awaitable[None]],
    ) -> None:
        self._config = config
        self._limits = limits_of(config)
        self._slot = slot
        self._shadow = shadow
        self._metrics = metrics
        self._observer: SwapObserver | None = None
        self._watch: asyncio.Task[None] | None = None
        self._rollbacks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._on_rollback = on_rollback

    def begin(self, swap: Swap, rollback: Rollback) -> None:
        """Watch a swap that was just made, unless monitoring is switched off; *rollback* undoes it."""
        if self._stopped or not self._config.watch_seconds:
            return
        observer = self._observer = SwapObserver(swap.subject.id)
        if swap.reference is not None:
            pair = pair_of(swap.subject, swap.reference, self._config)
            self._shadow.begin(pair, self._config.watch_share, observer.record_comparison)
        self._watch = asyncio.create_task(self._monitor(swap, observer, rollback), name="rollback-monitor")

    async def end(self) -> None:
        """Watch no longer. Afterwards nobody uses the engine that stands beside."""
        watch, self._watch, self._observer = self._watch, None, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await asyncio.to_thread(self._shadow.end)

    async def stop(self) -> None:
        """End, for good."""
        self._stopped = True
        await self.end()
        await asyncio.gather(*self._rollbacks)

    def batch_finished(self, checkpoint_id: str, *, seconds: float | None, failed: bool) -> None:  # noqa: ARG002 -- a BatchListener.
        """Count a live batch, from any thread."""
        observer = self._observer
        if observer is not None and observer.engine_id == checkpoint_id:
            observer.record_batch(failed=failed)

    async def _monitor(self, swap: Swap, observer: SwapObserver, rollback: Rollback) -> None:
        end = asyncio.get_running_loop().time() + self._config.watch_seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_POLL_SECONDS)
            seen = SwapStats(passes=observer.stats.passes) if swap.by_person else observer.stats
            if regression := find_regression(seen, self._limits, swap.adapted):
                # To undo it ends this watch.
                task = asyncio.create_task(self._undo(swap, regression, rollback), name="rollback")
                self._rollbacks.add(task)
                task.add_done_callback(self._rollbacks.discard)
                return
        seen = observer.stats
        log.info(
            "a swap is well",
            extra={"checkpoint": swap.subject.id, "passes": seen.passes.total, "compared": seen.texts.total},
        )
        self._observer = None
        await asyncio.to_thread(self._shadow.end)
        if swap.reference is not None:  # Whatever stands there by now is not ours to dismiss.
            await asyncio.to_thread(self._slot.release_standby, swap.reference)

    async def _undo(self, swap: Swap, regression: Regression, rollback: Rollback) -> None:
        bad = swap.subject.id
        try:
            restored = await rollback(bad, Author(SERVER, f"{bad} was bad: {regression.message}."))
        except (CheckpointError, ServerError) as error:
            log.error("a bad swap cannot be undone", extra={"checkpoint": bad, "reason": str(error)})  # noqa: TRY400 -- no bug of ours.
            return
        self._metrics.swaps_undone.labels(regression.cause).inc()
        audit.tell("roll back", who=SERVER, outcome="OK", checkpoint=restored, reason=regression.cause)
        log.error(
            "a bad swap was undone", extra={"checkpoint": bad, "restored": restored, "reason": regression.message}
        )
        event = RolledBack(checkpoint_id=bad, restored_id=restored, cause=regression.cause, reason=regression.message)
        if swap.job_id:
            await self._on_rollback(swap.job_id, event)

"""Shadow tests: compare a candidate with the live engine on live texts before its promotion. See ADR 27."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_server.config.settings import RollbackSettings, ShadowSettings
from twofold_server.inference.slot import Slot
from twofold_server.versions.analysis import Regression, SwapStats, find_regression, reject_reason
from twofold_server.versions.events import Shadowed
from twofold_server.versions.observer import SwapObserver
from twofold_server.versions.promoter import Promoter
from twofold_server.versions.shadow_traffic import ShadowTraffic

_POLL_SECONDS = 0.25
"""Seconds between two checks of the statistics."""
REPORT_SECONDS = 10.0
"""Seconds between two progress events of the job."""


@dataclass(frozen=True, slots=True)
class ShadowTestResult:
    """Result of a shadow test: the counts, and the regression that rejects the candidate, if any."""

    seen: Shadowed
    regression: Regression | None


class ShadowTest:
    """Compares candidates with the live engine before their promotion."""

    def __init__(
        self,
        settings: ShadowSettings,
        limits: RollbackSettings,
        slot: Slot,
        shadow: ShadowTraffic,
        promoter: Promoter,
    ) -> None:
        self.default_share = settings.share
        self.min_samples = limits.min_samples
        self._settings = settings
        self._limits = limits
        self._slot = slot
        self._shadow = shadow
        self._promoter = promoter

    async def run(
        self,
        checkpoint_id: str,
        share: float,
        adapted: HeadName,
        *,
        is_cancelled: Callable[[], bool],
        on_progress: Callable[[Shadowed], Awaitable[object]],
    ) -> ShadowTestResult | None:
        """Compare a candidate until there are enough texts, the time is up, or a regression is significant.

        The candidate then stays on standby, ready for promotion, unless it is rejected. *is_cancelled* or another promotion
        ends the test early. *on_progress* is awaited with the counts so far. Returns None if there is no live engine to
        compare with. Raises SwapError or CheckpointError if the candidate cannot be loaded.
        """
        pair = await self._promoter.load_standby(checkpoint_id)
        if pair is None:
            return None
        observer = SwapObserver(checkpoint_id)
        clock = asyncio.get_running_loop().time
        started_at = reported_at = clock()
        self._shadow.begin(pair, share, observer.record_comparison)
        try:
            while clock() - started_at < self._settings.seconds and self._slot.standby is pair.subject:
                seen = observer.stats
                if (
                    seen.texts.total >= self._settings.texts
                    or find_regression(seen, self._limits, adapted)
                    or is_cancelled()
                ):
                    break
                if clock() - reported_at >= REPORT_SECONDS:
                    reported_at = clock()
                    await on_progress(_progress(seen, reported_at - started_at))
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            if (
                self._slot.standby is pair.subject
            ):  # Otherwise a promotion has ended the traffic, and may have started a new comparison.
                await asyncio.to_thread(self._shadow.end)
        regression = reject_reason(observer.stats, self._limits, adapted)
        if regression or is_cancelled():
            await self._promoter.release_standby(pair)
        return ShadowTestResult(_progress(observer.stats, clock() - started_at), regression)


def _progress(seen: SwapStats, seconds: float) -> Shadowed:
    """Return the statistics as a job event."""
    comparable = {head: seen.differing[head].total for head in HEADS if seen.differing[head].total}
    return Shadowed(
        texts=seen.texts.total,
        failed=seen.texts.failures,
        slow=seen.slow.failures,
        agreed={head: texts - seen.differing[head].failures for head, texts in comparable.items()},
        comparable=comparable,
        seconds=seconds,
    )

"""A candidate answers live texts in shadow before it is made live: compared, and never returned. See ADR 27."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_server.config.settings import Config
from twofold_server.inference.slot import Slot
from twofold_server.versions.analysis import Regression, SwapStats, find_regression, reject_reason
from twofold_server.versions.events import Shadowed
from twofold_server.versions.observer import SwapObserver, limits_of
from twofold_server.versions.shadow_traffic import EnginePair, ShadowTraffic

_POLL_SECONDS = 0.25
"""Time between two looks at what was seen."""
REPORT_SECONDS = 10.0
"""Time between two words about it to who follows the job."""


@dataclass(frozen=True, slots=True)
class ShadowTestResult:
    """Say what was seen of a candidate, and why it is not to be made live, if it is not."""

    seen: Shadowed
    regression: Regression | None


class CandidateLoader(Protocol):
    """Whoever loads engines, one at a time."""

    async def load_standby(self, name: str) -> EnginePair | None:
        """Load a checkpoint beside the one that answers; None if nothing answers, or this one does."""

    async def release_standby(self, pair: EnginePair) -> None:
        """Let the subject go, if it still stands by."""


class ShadowTest:
    """Compare candidates with the live engine, before they are made live."""

    def __init__(self, config: Config, slot: Slot, shadow: ShadowTraffic, loader: CandidateLoader) -> None:
        self._config = config
        self._limits = limits_of(config)
        self._slot = slot
        self._shadow = shadow
        self._loader = loader

    async def run(
        self,
        checkpoint_id: str,
        share: float,
        adapted: HeadName,
        *,
        is_cancelled: Callable[[], bool],
        on_progress: Callable[[Shadowed], Awaitable[object]],
    ) -> ShadowTestResult | None:
        """Return what was seen once enough texts were compared, the time is over, or the candidate is bad.

        It then stands by, to be made live at once, unless it is refused. *is_unwanted* ends it, and so does another promotion.
        *tell* hears of what was seen so far. None if nothing answers that it could be compared with. Raises SwapError or
        CheckpointError if it cannot be loaded.
        """
        pair = await self._loader.load_standby(checkpoint_id)
        if pair is None:
            return None
        observer = SwapObserver(checkpoint_id)
        clock = asyncio.get_running_loop().time
        started_at = reported_at = clock()
        self._shadow.begin(pair, share, observer.record_comparison)
        try:
            while clock() - started_at < self._config.shadow_seconds and self._slot.standby is pair.subject:
                seen = observer.stats
                if (
                    seen.texts.total >= self._config.shadow_texts
                    or find_regression(seen, self._limits, adapted)
                    or is_cancelled()
                ):
                    break
                if clock() - reported_at >= REPORT_SECONDS:
                    reported_at = clock()
                    await on_progress(_progress(seen, reported_at - started_at))
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            if self._slot.standby is pair.subject:  # Otherwise who ended it has stopped it, and may have begun anew.
                await asyncio.to_thread(self._shadow.end)
        regression = reject_reason(observer.stats, self._limits, adapted)
        if regression or is_cancelled():
            await self._loader.release_standby(pair)
        return ShadowTestResult(_progress(observer.stats, clock() - started_at), regression)


def _progress(seen: SwapStats, seconds: float) -> Shadowed:
    """Write evidence down for the job."""
    comparable = {head: seen.differing[head].total for head in HEADS if seen.differing[head].total}
    return Shadowed(
        texts=seen.texts.total,
        failed=seen.texts.failures,
        slow=seen.slow.failures,
        agreed={head: texts - seen.differing[head].failures for head, texts in comparable.items()},
        comparable=comparable,
        seconds=seconds,
    )

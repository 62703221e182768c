"""Observations of one checkpoint under live traffic."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from twofold_checkpoint.manifest import HeadName

from twofold_server.inference.engine import Engine
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.analysis import SwapStats
from twofold_server.versions.shadow_traffic import ShadowComparison


@dataclass(frozen=True, slots=True)
class Swap:
    """A finished swap: *subject* is live now; *reference* is the previous engine if it is the standby engine."""

    subject: Engine
    reference: Engine | None
    author: Author
    by_person: bool
    adapted: HeadName | None
    """The head that was adapted, if a job created the subject."""

    @property
    def job_id(self) -> str:
        """The id of the job that created the subject, or an empty string."""
        return (self.subject.checkpoint.manifest.job_id or "") if self.by_person else self.author.actor


class SwapObserver:
    """Collects statistics about one engine. Thread-safe."""

    def __init__(self, engine_id: str) -> None:
        self.engine_id = engine_id
        self._lock = threading.Lock()
        self._stats = SwapStats()

    @property
    def stats(self) -> SwapStats:
        """The statistics so far."""
        return self._stats

    def record_batch(self, *, failed: bool) -> None:
        """Count a live batch."""
        with self._lock:
            self._stats = replace(self._stats, passes=self._stats.passes + failed)

    def record_comparison(self, seen: ShadowComparison) -> None:
        """Count a text that both engines answered."""
        with self._lock:
            old = self._stats
            differing = dict(old.differing)
            for head, agrees in seen.agrees.items():
                differing[head] += not agrees
            self._stats = replace(old, texts=old.texts + seen.failed, slow=old.slow + seen.slow, differing=differing)

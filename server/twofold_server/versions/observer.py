"""What is seen of one checkpoint while it is compared with another."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from twofold_checkpoint.manifest import HeadName

from twofold_server.config.settings import Config
from twofold_server.inference.engine import Engine
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.analysis import Limits, SwapStats
from twofold_server.versions.shadow_traffic import Comparison, EnginePair


@dataclass(frozen=True, slots=True)
class Swap:
    """Say that the *subject* answers now. The *reference*, which answered before, is there if it was kept."""

    subject: Engine
    reference: Engine | None
    author: Author
    by_person: bool
    adapted: HeadName | None
    """The head that was to change, where a job made the subject."""

    @property
    def job_id(self) -> str:
        """The job that made the subject, or nothing."""
        return (self.subject.checkpoint.manifest.job_id or "") if self.by_person else self.author.who


class SwapObserver:
    """Gather evidence, from any thread."""

    def __init__(self, engine_id: str) -> None:
        self.engine_id = engine_id
        self._lock = threading.Lock()
        self._stats = SwapStats()

    @property
    def stats(self) -> SwapStats:
        """What was seen so far."""
        return self._stats

    def record_batch(self, *, failed: bool) -> None:
        """Count a live pass."""
        with self._lock:
            self._stats = replace(self._stats, passes=self._stats.passes + failed)

    def record_comparison(self, seen: Comparison) -> None:
        """Count a text that both have answered."""
        with self._lock:
            old = self._stats
            differing = dict(old.differing)
            for head, agrees in seen.agrees.items():
                differing[head] += not agrees
            self._stats = replace(old, texts=old.texts + seen.failed, slow=old.slow + seen.slow, differing=differing)


def pair_of(subject: Engine, reference: Engine, config: Config) -> EnginePair:
    """Return two engines to compare."""
    return EnginePair(subject, reference, config.watch_slowdown)


def limits_of(config: Config) -> Limits:
    """Return the limits that are set."""
    return Limits(
        min_samples=config.watch_fewest,
        errors=config.watch_errors,
        slowdown=config.watch_slowdown,
        agreement=config.watch_agreement,
        adapted_agreement=config.watch_adapted_agreement,
    )

"""Traffic mirroring: idle time is used to answer a share of the live texts again, with the live and with the standby engine.

An answer does not depend on the batch, so the live engine's second answer equals the one that its caller received.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.manifest import HeadName

from twofold_server.inference.engine import HEAD_OUTPUTS, Engine, decode_rows
from twofold_server.observability.metrics import Metrics
from twofold_server.resources.cpus import set_idle_priority
from twofold_server.versions.agreement import SharedNames, agreements

_MAX_QUEUE = 64
"""Maximum queued texts. Further texts are dropped."""
_MAX_QUEUE_SECONDS = 5.0
"""Seconds that a text waits for an idle moment before it is dropped."""
_POLL_SECONDS = 0.005
_TRIES = 3
"""A text counts as slow only if every try is slow, so that other load on the machine does not count."""
_MIN_SLOW_SECONDS = 0.002
"""Minimum difference in seconds for a text to count as slow, for any ratio."""


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """ShadowComparison for one text: whether only the subject *failed*, whether it was *slow*, and which heads agree."""

    failed: bool
    slow: bool
    agrees: Mapping[HeadName, bool]


@dataclass(frozen=True, slots=True)
class EnginePair:
    """The engine under test, and the engine that it is compared with."""

    subject: Engine
    reference: Engine
    slowdown: float
    """The subject is slow if it takes more than *slowdown* times as long as the reference."""


class ShadowTraffic:
    """Compares two engines on a share of the live texts, on a thread of idle priority.

    *is_busy* returns whether live texts are queued. While it does, nothing is compared, and texts that wait too long are
    dropped. Calls of begin() and end() must alternate; both engines are in use between them.
    """

    def __init__(self, metrics: Metrics, is_busy: Callable[[], bool], max_tokens: int) -> None:
        self._metrics = metrics
        self._is_busy = is_busy
        self._max_tokens = max_tokens
        self._random = random.Random()
        self._share = 0.0
        self._queue: deque[tuple[float, str]] = deque()
        self._arrival = threading.Condition()
        self._thread: threading.Thread | None = None
        self._end_lock = threading.Lock()

    def begin(self, pair: EnginePair, share: float, on_comparison: Callable[[ShadowComparison], None]) -> None:
        """Start comparing. *observe* is called on the comparing thread."""
        assert self._thread is None, "Two comparisons at once. This is a bug."
        self._queue.clear()
        self._thread = threading.Thread(target=self._run, args=(pair, on_comparison), name="shadow", daemon=True)
        self._share = share
        self._thread.start()

    def end(self) -> None:
        """Stop comparing, and wait until no engine is in use. Blocks for up to a pass. Does nothing if not started."""
        with self._end_lock:
            self._share = 0.0
            if self._thread is not None:
                with self._arrival:
                    self._arrival.notify_all()
                self._thread.join()
                self._thread = None

    def sample(self, texts: Sequence[str]) -> None:
        """Queue a random share of the texts of a request; drop texts if the queue is full."""
        if not self._share:
            return
        for text in texts:
            if self._random.random() < self._share:
                with self._arrival:
                    if len(self._queue) >= _MAX_QUEUE:
                        self._count("dropped")
                        continue
                    self._queue.append((time.monotonic(), text))
                    self._arrival.notify()

    def _run(self, pair: EnginePair, on_comparison: Callable[[ShadowComparison], None]) -> None:
        set_idle_priority()
        while (text := self._next()) is not None:
            comparison = _compare(pair, text, self._max_tokens)
            if comparison is None:
                self._count("failed")
                continue
            self._count("failed" if comparison.failed else "compared")
            for head, agrees in comparison.agrees.items():
                self._metrics.shadow_answers.labels(head, "agreed" if agrees else "differed").inc()
            on_comparison(comparison)

    def _next(self) -> str | None:
        """Wait for a text and for an idle moment. Return None after end()."""
        while True:
            with self._arrival:
                while self._share and not self._queue:
                    self._arrival.wait()
                if not self._share:
                    return None
                queued_at, text = self._queue.popleft()
            while self._share and self._is_busy() and time.monotonic() - queued_at < _MAX_QUEUE_SECONDS:
                time.sleep(_POLL_SECONDS)
            if not self._share:
                return None
            if time.monotonic() - queued_at < _MAX_QUEUE_SECONDS:
                return text
            self._count("dropped")

    def _count(self, outcome: str) -> None:
        self._metrics.shadow_texts.labels(outcome).inc()


def _compare(pair: EnginePair, text: str, max_tokens: int) -> ShadowComparison | None:
    """Compare the answers of both engines to a text. Return None if the reference fails."""
    reference, reference_seconds = _answer(pair.reference, text, max_tokens)
    subject, subject_seconds = _answer(pair.subject, text, max_tokens)
    if reference is None:
        return None
    if subject is None:
        return ShadowComparison(failed=True, slow=False, agrees={})
    tries = 1
    while (slow := _is_slow(subject_seconds, reference_seconds, pair.slowdown)) and tries < _TRIES:
        subject_seconds, reference_seconds = (
            _answer(engine, text, max_tokens)[1] for engine in (pair.subject, pair.reference)
        )
        tries += 1
    shared = SharedNames.of(pair.reference.labels, pair.subject.labels)
    return ShadowComparison(failed=False, slow=slow, agrees=agreements(reference, subject, shared))


def _is_slow(subject: float, reference: float, slowdown: float) -> bool:
    return subject > slowdown * reference and subject - reference > _MIN_SLOW_SECONDS


def _answer(engine: Engine, text: str, max_tokens: int) -> tuple[Prediction | None, float]:
    """Return the prediction of an engine and its duration in seconds. The prediction is None on failure or non-finite outputs."""
    [encoding] = engine.encoder.encode([text])
    started_at = time.perf_counter()
    try:
        rows = engine.run_windows(encoding.windows, HEAD_OUTPUTS, max_tokens)
        seconds = time.perf_counter() - started_at
        if not all(rows):
            return None, seconds
        return decode_rows([encoding], [rows], engine.labels)[0], seconds
    except Exception:  # noqa: BLE001 -- any failure is counted.
        return None, time.perf_counter() - started_at

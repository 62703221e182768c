"""A share of the live texts is answered again, by the live engine and by the one beside it, when nothing else is to be done.

A text gets the same answer whatever stands beside it, so to answer it once more shows what its caller was told.
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

from twofold_server.inference.engine import HEAD_OUTPUTS, Engine, decode
from twofold_server.observability.metrics import Metrics
from twofold_server.resources.cpus import set_idle_priority
from twofold_server.versions.agreement import Shared, agreements

_MAX_QUEUE = 64
"""Texts. Those that come while so many wait are not compared."""
_MAX_QUEUE_SECONDS = 5.0
"""How long a text waits for a moment in which the live ones have nothing to do."""
_POLL_SECONDS = 0.005
_TRIES = 3
"""A text is slow if it is so each time: whatever else the machine does would be counted otherwise."""
_MIN_SLOW_SECONDS = 0.002
"""A difference below it is no slowness, whatever the ratio."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one text shows of an engine: whether only it *failed*, whether it was *slow*, and which heads agree."""

    failed: bool
    slow: bool
    agrees: Mapping[HeadName, bool]


@dataclass(frozen=True, slots=True)
class EnginePair:
    """The engine that is looked at, and the one that it is compared with."""

    subject: Engine
    reference: Engine
    slowdown: float
    """The subject is slow where it takes more than so many times as long."""


class ShadowTraffic:
    """Compare two engines on a share of the live texts, on a thread that comes last.

    *is_busy* tells whether live texts wait; nothing is compared then, and what waited for long is dropped. offer() is
    called for every request, begin() and end() by turns; what is begun and not ended holds both engines.
    """

    def __init__(self, metrics: Metrics, is_busy: Callable[[], bool], max_tokens: int) -> None:
        self._metrics = metrics
        self._is_busy = is_busy
        self._max_tokens = max_tokens
        self._chance = random.Random()
        self._share = 0.0
        self._waiting: deque[tuple[float, str]] = deque()
        self._arrival = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending = threading.Lock()

    def begin(self, pair: EnginePair, share: float, observe: Callable[[Comparison], None]) -> None:
        """Compare from now on; *observe* is called on the thread."""
        assert self._thread is None, "Two comparisons at once. This is a bug."
        self._waiting.clear()
        self._thread = threading.Thread(target=self._run, args=(pair, observe), name="shadow", daemon=True)
        self._share = share
        self._thread.start()

    def end(self) -> None:
        """Stop, and return once no engine is in use. Blocks for a pass; does nothing where nothing was begun."""
        with self._ending:
            self._share = 0.0
            if self._thread is not None:
                with self._arrival:
                    self._arrival.notify_all()
                self._thread.join()
                self._thread = None

    def request_finished(self, seconds: float) -> None:
        """Ignore how long requests take."""

    def request_admitted(self, texts: Sequence[str]) -> None:
        """Take a share of a request's texts, as far as there is room."""
        if not self._share:
            return
        for text in texts:
            if self._chance.random() < self._share:
                with self._arrival:
                    if len(self._waiting) >= _MAX_QUEUE:
                        self._count("dropped")
                        continue
                    self._waiting.append((time.monotonic(), text))
                    self._arrival.notify()

    def _run(self, pair: EnginePair, observe: Callable[[Comparison], None]) -> None:
        set_idle_priority()
        while (text := self._next()) is not None:
            comparison = _compare(pair, text, self._max_tokens)
            if comparison is None:
                self._count("failed")
                continue
            self._count("failed" if comparison.failed else "compared")
            for head, agrees in comparison.agrees.items():
                self._metrics.shadow_answers.labels(head, "agreed" if agrees else "differed").inc()
            observe(comparison)

    def _next(self) -> str | None:
        """Wait for a text and for a moment of quiet; None at the end."""
        while True:
            with self._arrival:
                while self._share and not self._waiting:
                    self._arrival.wait()
                if not self._share:
                    return None
                arrived, text = self._waiting.popleft()
            while self._share and self._is_busy() and time.monotonic() - arrived < _MAX_QUEUE_SECONDS:
                time.sleep(_POLL_SECONDS)
            if not self._share:
                return None
            if time.monotonic() - arrived < _MAX_QUEUE_SECONDS:
                return text
            self._count("dropped")

    def _count(self, outcome: str) -> None:
        self._metrics.shadow_texts.labels(outcome).inc()


def _compare(pair: EnginePair, text: str, max_tokens: int) -> Comparison | None:
    """Let both engines answer a text; None if neither can, or only the one that is compared with cannot."""
    reference, of_reference = _answer(pair.reference, text, max_tokens)
    subject, of_subject = _answer(pair.subject, text, max_tokens)
    if reference is None:
        return None
    if subject is None:
        return Comparison(failed=True, slow=False, agrees={})
    tries = 1
    while (slow := _is_slow(of_subject, of_reference, pair.slowdown)) and tries < _TRIES:
        of_subject, of_reference = (_answer(engine, text, max_tokens)[1] for engine in (pair.subject, pair.reference))
        tries += 1
    shared = Shared.of(pair.reference.labels, pair.subject.labels)
    return Comparison(failed=False, slow=slow, agrees=agreements(reference, subject, shared))


def _is_slow(subject: float, reference: float, slowdown: float) -> bool:
    return subject > slowdown * reference and subject - reference > _MIN_SLOW_SECONDS


def _answer(engine: Engine, text: str, max_tokens: int) -> tuple[Prediction | None, float]:
    """Return an engine's answer and the seconds that it took; no answer if the engine fails or its numbers are none."""
    [encoding] = engine.encoder.encode([text])
    started_at = time.perf_counter()
    try:
        rows = engine.run_windows(encoding.windows, HEAD_OUTPUTS, max_tokens)
        seconds = time.perf_counter() - started_at
        if not all(rows):
            return None, seconds
        return decode([encoding], [rows], engine.labels)[0], seconds
    except Exception:  # noqa: BLE001 -- whatever it was, it is counted.
        return None, time.perf_counter() - started_at

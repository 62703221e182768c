"""The holder of the live engine, and a batch's short hold on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from twofold_server.engine import Engine, EngineState
from twofold_server.errors import NotServingError
from twofold_server.metrics import Metrics


class Slot:
    """Hold one live engine, and those that drain.

    A lease keeps its engine alive; a batch takes one and holds it for one batch only. Leases are counted for each
    engine: an engine that was replaced waits for its own leases, never for those of its successor.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._live: Engine | None = None
        self._leases: dict[Engine, int] = {}
        # Closing takes a while, so it happens on a thread that no request waits for.
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="close-engine")
        self._idle = threading.Condition(self._lock)

    def __repr__(self) -> str:
        return f"<Slot {self._live!r}, {len(self._leases)} engines in use>"

    @property
    def live(self) -> Engine | None:
        """The engine that answers, to look at and not to run; None before the first one is ready."""
        return self._live

    @contextmanager
    def lease(self) -> Iterator[Engine]:
        """Hold the live engine. Raises NotServingError if there is none."""
        with self._lock:
            engine = self._live
            if engine is None:
                raise NotServingError("no checkpoint is live; publish one and promote it")
            self._leases[engine] = self._leases.get(engine, 0) + 1
        try:
            yield engine
        finally:
            with self._lock:
                self._leases[engine] -= 1
                if not self._leases[engine]:
                    del self._leases[engine]
                    self._idle.notify_all()
                    if engine is not self._live:
                        self._closer.submit(self._close, engine)

    def swap(self, engine: Engine | None) -> Engine | None:
        """Replace the live engine and return the old one, which closes by itself once its last lease is given back.

        Every lease that begins after this returned is one of the new engine.
        """
        with self._lock:
            old, self._live = self._live, engine
            if engine is not None:
                engine.state = EngineState.READY
                self._metrics.engines.inc()
            if old is not None:
                old.state = EngineState.DRAINING
                if old not in self._leases:
                    self._closer.submit(self._close, old)
            self._report(old)
        return old

    def drain(self) -> None:
        """Let the live engine go, and return when every engine is closed. Blocks until the last lease is given back."""
        self.swap(None)
        with self._lock:
            self._idle.wait_for(lambda: not self._leases)
        self._closer.shutdown(wait=True)

    def _close(self, engine: Engine) -> None:
        engine.close()
        self._metrics.engines.dec()

    def _report(self, old: Engine | None) -> None:
        self._metrics.ready.set(self._live is not None)
        if self._live is not None:
            self._metrics.checkpoint.labels(self._live.id).set(1)
            self._metrics.precision.labels(self._live.precision).set(1)
        if old is not None and (self._live is None or old.id != self._live.id):
            self._metrics.checkpoint.remove(old.id)
        if old is not None and (self._live is None or old.precision != self._live.precision):
            self._metrics.precision.remove(old.precision)

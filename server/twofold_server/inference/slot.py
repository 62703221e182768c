"""The holder of the live engine, and a batch's short hold on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from twofold_server.errors import NotServingError
from twofold_server.inference.engine import Engine, EngineState
from twofold_server.observability.metrics import Metrics


class Slot:
    """Hold one live engine, at most one that stands beside it to be compared with, and those that drain.

    A lease keeps its engine alive; a batch takes one and holds it for one batch only. Leases are counted for each
    engine: an engine that was replaced waits for its own leases, never for those of its successor.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._live: Engine | None = None
        self._standby: Engine | None = None
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

    @property
    def standby(self) -> Engine | None:
        """The engine that stands beside the live one: it is loaded, and answers nobody."""
        return self._standby

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
                    if engine.state is EngineState.DRAINING:
                        self._closer.submit(self._close, engine)

    def swap(self, engine: Engine | None, *, keep: bool = False) -> Engine | None:
        """Replace the live engine and return the old one, which closes by itself once its last lease is given back.

        With *keep* it stands beside the new one instead. Every lease that begins after this returned is one of the new
        engine, which may have stood beside the old one.
        """
        with self._lock:
            old, self._live = self._live, engine
            if engine is not None:
                engine.state = EngineState.READY
                if engine is self._standby:
                    self._standby = None
                else:
                    self._metrics.engines.inc()
            if old is not None and not keep:
                self._retire(old)
            self._metrics.engines_beside.set(self._standby is not None)
            self._report(old)
        if keep:
            self.set_standby(old, is_counted=True)
        return old

    def set_standby(self, engine: Engine | None, *, is_counted: bool = False) -> None:
        """Let an engine stand beside the live one, instead of the one that did. *is_counted* says that it was live."""
        with self._lock:
            old, self._standby = self._standby, engine
            if engine is not None and not is_counted:
                engine.state = EngineState.READY
                self._metrics.engines.inc()
            if old is not None:
                self._retire(old)
            self._metrics.engines_beside.set(engine is not None)

    def release_standby(self, engine: Engine | None = None) -> None:
        """Let the engine go that stands beside, or that one if it does. Blocks until its memory is free for another one."""
        with self._lock:
            if self._standby is not None and engine in {None, self._standby}:
                self._retire(self._standby)
                self._standby = None
                self._metrics.engines_beside.set(0)
        with suppress(RuntimeError):  # Nothing is closed any more after drain(), which has waited itself.
            self._closer.submit(lambda: None).result()

    def drain(self) -> None:
        """Let all engines go, and return when every one is closed. Blocks until the last lease is given back."""
        self.swap(None)
        self.set_standby(None)
        with self._lock:
            self._idle.wait_for(lambda: not self._leases)
        self._closer.shutdown(wait=True)

    def _retire(self, engine: Engine) -> None:
        engine.state = EngineState.DRAINING
        if engine not in self._leases:
            self._closer.submit(self._close, engine)

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

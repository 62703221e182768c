"""The live engine, the standby engine, and the leases on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from twofold_server.errors import NotServingError
from twofold_server.inference.engine import Engine, EngineState
from twofold_server.observability.metrics import Metrics


class Slot:
    """One live engine, at most one standby engine to compare it with, and the engines that drain.

    A lease keeps its engine open; each batch takes one. Leases are counted per engine: a replaced engine waits for its leases
    only, never for those of its successor.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._live: Engine | None = None
        self._standby: Engine | None = None
        self._leases: dict[Engine, int] = {}
        # Closing is slow, so it runs on a thread that no request waits for.
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="close-engine")
        self._idle = threading.Condition(self._lock)

    def __repr__(self) -> str:
        return f"<Slot {self._live!r}, {len(self._leases)} engines in use>"

    @property
    def live(self) -> Engine | None:
        """The live engine; None before the first one is ready. Take a lease to run it."""
        return self._live

    @property
    def standby(self) -> Engine | None:
        """The standby engine. It is loaded, but answers no requests."""
        return self._standby

    @contextmanager
    def lease(self) -> Iterator[Engine]:
        """Lease the live engine for the block. Raises NotServingError if there is none."""
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

    def swap(self, engine: Engine | None, *, keep_standby: bool = False) -> Engine | None:
        """Replace the live engine and return the old one, which closes once its last lease is released.

        With *keep_standby* the old engine becomes the standby engine instead. The new engine may have been the standby engine.
        Every lease taken after this returns is on the new engine.
        """
        with self._lock:
            old, self._live = self._live, engine
            if engine is not None:
                engine.state = EngineState.READY
                if engine is self._standby:
                    self._standby = None
                else:
                    self._metrics.engines.inc()
            if old is not None and not keep_standby:
                self._retire(old)
            self._metrics.standby_engines.set(self._standby is not None)
            self._report(old)
        if keep_standby:
            self.set_standby(old, is_counted=True)
        return old

    def set_standby(self, engine: Engine | None, *, is_counted: bool = False) -> None:
        """Replace the standby engine. *is_counted*: the engine was live, so the metrics already count it."""
        with self._lock:
            old, self._standby = self._standby, engine
            if engine is not None and not is_counted:
                engine.state = EngineState.READY
                self._metrics.engines.inc()
            if old is not None:
                self._retire(old)
            self._metrics.standby_engines.set(engine is not None)

    def release_standby(self, engine: Engine | None = None) -> None:
        """Retire the standby engine; with *engine*, only if that is it. Blocks until idle retired engines are closed."""
        with self._lock:
            if self._standby is not None and engine in {None, self._standby}:
                self._retire(self._standby)
                self._standby = None
                self._metrics.standby_engines.set(0)
        with suppress(RuntimeError):  # After drain() there is nothing left to wait for.
            self._closer.submit(lambda: None).result()

    def drain(self) -> None:
        """Retire all engines and wait until they are closed. Blocks until the last lease is released."""
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

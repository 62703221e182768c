"""The slot: a lease keeps its engine open, and no other."""

from __future__ import annotations

import threading
import time

import pytest
from twofold_server.errors import NotServingError
from twofold_server.inference.engine import EngineState
from twofold_server.inference.slot import Slot
from twofold_server.observability.metrics import Metrics


class StubEngine:
    """A fake engine that can be closed."""

    def __init__(self, name):
        self.id = name
        self.state = EngineState.LOADING
        self.precision = "fp32"
        self.closed_by = None

    def close(self):
        """Record the thread."""
        self.state = EngineState.CLOSED
        self.closed_by = threading.current_thread().name


def closed(engine, patience=5.0):
    """Wait until an engine is closed."""
    end = time.monotonic() + patience
    while engine.state is not EngineState.CLOSED and time.monotonic() < end:
        time.sleep(0.005)
    return engine.state is EngineState.CLOSED


def value(metrics, name, **labels):
    """Return the value of a metric."""
    return metrics.registry.get_sample_value(name, labels)


def test_an_empty_slot_gives_no_lease():
    """Before the first swap there is nothing to lease, and the error says what to do."""
    with pytest.raises(NotServingError, match="promote"), Slot(Metrics()).lease():
        pass


def test_the_old_engine_lives_as_long_as_its_leases():
    """A swap does not wait; the old engine is closed in a separate thread after its last lease."""
    slot, old, new = Slot(Metrics()), StubEngine("old"), StubEngine("new")
    slot.swap(old)
    with slot.lease() as first, slot.lease() as second:
        assert slot.swap(new) is old
        assert (first, second, slot.live) == (old, old, new)
        assert (old.state, new.state) == (EngineState.DRAINING, EngineState.READY)
        with slot.lease() as later:
            assert later is new
        assert not closed(old, 0.05)

    assert closed(old)
    assert old.closed_by.startswith("close-engine")
    assert new.state is EngineState.READY


def test_leases_of_the_new_engine_do_not_keep_the_old_one():
    """Leases are counted per engine, so traffic after a swap does not delay the close."""
    slot, old, new = Slot(Metrics()), StubEngine("old"), StubEngine("new")
    slot.swap(old)
    lease = slot.lease()
    lease.__enter__()
    slot.swap(new)
    with slot.lease():
        lease.__exit__(None, None, None)

        assert closed(old)


def test_an_unleased_engine_closes_at_once():
    """Without leases the old engine is closed at once."""
    slot, old = Slot(Metrics()), StubEngine("old")
    slot.swap(old)
    slot.swap(StubEngine("new"))

    assert closed(old)


def test_an_error_under_a_lease_gives_it_back():
    """A failed batch releases its lease."""
    slot, old = Slot(Metrics()), StubEngine("old")
    slot.swap(old)
    with pytest.raises(KeyError), slot.lease():
        raise KeyError
    slot.swap(None)

    assert closed(old)


def test_drain_returns_when_all_is_closed():
    """drain() waits for the last lease and the close."""
    slot, old = Slot(Metrics()), StubEngine("old")
    slot.swap(old)
    lease = slot.lease()
    lease.__enter__()
    threading.Timer(0.05, lease.__exit__, (None, None, None)).start()
    slot.drain()

    assert old.state is EngineState.CLOSED
    assert slot.live is None


def test_metrics_show_the_engines_in_memory():
    """Metrics show readiness, the live checkpoint and the engines in memory before, during and after a swap."""
    metrics = Metrics()
    slot, old, new = Slot(metrics), StubEngine("old"), StubEngine("new")
    new.precision = "int8"
    assert value(metrics, "twofold_ready") == 0
    slot.swap(old)
    assert value(metrics, "twofold_checkpoint_info", checkpoint="old") == 1
    assert value(metrics, "twofold_precision_info", precision="fp32") == 1
    with slot.lease():
        slot.swap(new)
        assert value(metrics, "twofold_engines") == 2
    assert value(metrics, "twofold_checkpoint_info", checkpoint="old") is None
    assert value(metrics, "twofold_checkpoint_info", checkpoint="new") == 1
    assert value(metrics, "twofold_precision_info", precision="fp32") is None
    assert value(metrics, "twofold_precision_info", precision="int8") == 1
    slot.drain()

    assert value(metrics, "twofold_engines") == 0
    assert value(metrics, "twofold_ready") == 0


def test_a_replaced_engine_can_stand_by_and_come_back():
    """A standby engine stays open, can be swapped back, and then the other one is closed."""
    metrics = Metrics()
    slot, old, new = Slot(metrics), StubEngine("old"), StubEngine("new")
    slot.swap(old)
    assert slot.swap(new, keep_standby=True) is old
    assert (slot.live, slot.standby, old.state) == (new, old, EngineState.READY)
    assert (value(metrics, "twofold_engines"), value(metrics, "twofold_standby_engines")) == (2, 1)

    slot.swap(old)
    assert (slot.live, slot.standby) == (old, None)
    assert closed(new)
    assert value(metrics, "twofold_standby_engines") == 0
    slot.drain()
    assert value(metrics, "twofold_engines") == 0


def test_one_engine_stands_by_at_most():
    """There is at most one standby engine, and releasing an engine that is gone does not release another."""
    slot, first, second = Slot(Metrics()), StubEngine("first"), StubEngine("second")
    slot.swap(StubEngine("live"))
    slot.set_standby(first)
    slot.set_standby(second)
    assert closed(first)
    slot.release_standby(first)
    assert slot.standby is second
    slot.release_standby(second)
    assert slot.standby is None
    assert second.state is EngineState.CLOSED
    slot.set_standby(third := StubEngine("third"))
    slot.drain()
    assert third.state is EngineState.CLOSED

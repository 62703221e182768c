"""Threads: one per CPU, and work at idle priority."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from twofold_server.resources.cpus import count_cpus, effective_cpus, run_in_thread, set_idle_priority, split_cpus

QUOTAS = [
    (8, None, 8),
    (8, "max 100000\n", 8),
    (8, "max", 8),
    (8, "", 8),
    (8, "200000 100000\n", 2),
    (8, "150000 100000\n", 2),
    (8, "50000 100000\n", 1),
    (8, "1000 100000\n", 1),
    (2, "800000 100000\n", 2),
    (1, "max 100000", 1),
]


@pytest.mark.parametrize(("affinity", "cpu_max", "expected"), QUOTAS)
def test_a_quota_cuts_the_affinity(affinity, cpu_max, expected):
    """The CPUs are those of the affinity, limited by the quota rounded up, and at least one."""
    assert effective_cpus(affinity, cpu_max) == expected


def test_this_machine_has_a_cpu():
    """This machine has at least one CPU."""
    assert count_cpus() >= 1


def priority():
    """Return this thread's priority."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)


def test_run_in_thread_uses_another_thread():
    """run_in_thread() returns the result of the work, and raises its error."""
    assert run_in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 // 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_only_the_thread_that_steps_back_and_those_that_it_starts_do():
    """Only the thread that sets idle priority, and the threads that it starts, get it."""

    def work():
        set_idle_priority()
        with ThreadPoolExecutor(1) as pool:
            return priority(), pool.submit(priority).result()

    before = priority()
    assert run_in_thread(work) == ((19, os.SCHED_IDLE), (19, os.SCHED_IDLE))
    assert priority() == before != (19, os.SCHED_IDLE)


@pytest.mark.parametrize(
    ("cpus", "device", "requested", "passes", "threads"),
    [
        (1, "cpu", {}, 1, 1),
        (2, "cpu", {}, 2, 1),
        (16, "cpu", {}, 2, 15),
        (16, "cpu", {"passes": 1}, 1, 16),
        (2, "cpu", {"passes": 4}, 4, 1),
        (2, "cpu", {"threads": 2}, 2, 2),
        (1, "cuda", {}, 1, 1),
        (16, "cuda", {}, 1, 16),
    ],
)
def test_passes_and_threads_match_the_cpus(cpus, device, requested, passes, threads):
    """There are two passes with a second core, one on a GPU, and one thread per CPU in all."""
    assert split_cpus(cpus, device, **requested) == (passes, threads)

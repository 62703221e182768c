"""Threads: as many as the process has CPUs, and one aside."""

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
    """The CPUs are those of the affinity, cut by the quota rounded up, and never none."""
    assert effective_cpus(affinity, cpu_max) == expected


def test_this_machine_has_a_cpu():
    """Whatever this machine is, there is at least one CPU to use."""
    assert count_cpus() >= 1


def priority():
    """Return this thread's own."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)


def test_work_aside_is_done_on_another_thread():
    """What the work returns comes back, and what it raises is raised."""
    assert run_in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 // 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_only_the_thread_that_steps_back_and_those_that_it_starts_do():
    """They come last in niceness and in policy; the thread that waits for the work keeps both."""

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
def test_passes_and_their_threads_are_as_many_as_cpus(cpus, device, requested, passes, threads):
    """Two passes where there is a second core, one on a GPU; their own threads and those they share are one for each CPU."""
    assert split_cpus(cpus, device, **requested) == (passes, threads)

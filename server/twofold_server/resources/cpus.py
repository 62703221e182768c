"""The CPUs available to this process, how passes share them, and threads of idle priority."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple, TypeVar

from twofold_server.resources.cgroups import read_groups

T = TypeVar("T")


def effective_cpus(affinity: int, cpu_max: str | None) -> int:
    """Return the number of CPUs a process may use: its affinity, limited by a cgroup quota such as ``"150000 100000"``.

    A quota is rounded up: a surplus thread waits a little, a missing thread leaves part of the quota unused.
    """
    quota, _, period = (cpu_max or "max").strip().partition(" ")
    if quota == "max" or not period:
        return affinity
    return max(1, min(affinity, math.ceil(int(quota) / int(period))))


class Shares(NamedTuple):
    """Number of concurrent *passes*, and of intra-op *threads* per pass."""

    passes: int
    threads: int


def split_cpus(cpus: int, device: str, *, passes: int = 0, threads: int = 0) -> Shares:
    """Return the number of concurrent forward passes and of threads per pass. 0 stands for the default.

    The default is two passes on a CPU with at least two cores. Each pass runs on one thread and all share the session's
    pool; the total equals the number of CPUs, so that threads do not compete for cores. See ADR 20.
    """
    passes = passes or (2 if device == "cpu" and cpus > 1 else 1)
    return Shares(passes, threads or max(1, cpus - passes + 1))


def count_cpus() -> int:
    """Return the number of CPUs available to this process."""
    affinity = len(os.sched_getaffinity(0))
    return min(effective_cpus(affinity, cpu_max) for (cpu_max,) in read_groups("cpu.max"))


def run_in_thread(work: Callable[[], T]) -> T:
    """Run *work* on a new thread, and return its result or raise its error.

    The thread ends with the work, so the work may lower the priority of its thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="aside") as aside:
        return aside.submit(work).result()


def set_idle_priority() -> None:
    """Run the calling thread at idle priority until it ends; raising the priority again needs a privilege.

    Threads that it starts inherit the priority. Niceness alone is not enough: the thread would keep its time slice, and its
    core would look busy to threads that wake up. Under SCHED_IDLE they preempt it at once. If the system denies SCHED_IDLE,
    niceness 19 remains.
    """
    with suppress(OSError, AttributeError):  # Not Linux: threads have no separate priority.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

"""Threads: as many as this process may use, which is not what the machine has, and one for work that can wait."""

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
    """Return the CPUs that a process may use: its affinity, cut by a cgroup quota such as ``"150000 100000"``.

    A quota is rounded up: a thread too many waits a little, a thread too few leaves time unused that is paid for.
    """
    quota, _, period = (cpu_max or "max").strip().partition(" ")
    if quota == "max" or not period:
        return affinity
    return max(1, min(affinity, math.ceil(int(quota) / int(period))))


class Shares(NamedTuple):
    """How CPUs are shared out: *passes* at a time, each of which may use *threads*."""

    passes: int
    threads: int


def split_cpus(cpus: int, device: str, *, passes: int = 0, threads: int = 0) -> Shares:
    """Say how many forward passes run at a time, and on how many threads, where nobody does (zero).

    There are two passes where there is a second core to compute on. Each brings a thread of its own, and all share those of
    the session's pool: together they are as many as there are CPUs, so that none takes a core from another. See ADR 20.
    """
    passes = passes or (2 if device == "cpu" and cpus > 1 else 1)
    return Shares(passes, threads or max(1, cpus - passes + 1))


def count_cpus() -> int:
    """Ask this machine."""
    affinity = len(os.sched_getaffinity(0))
    return min(effective_cpus(affinity, cpu_max) for (cpu_max,) in read_groups("cpu.max"))


def run_in_thread(work: Callable[[], T]) -> T:
    """Do some work on a thread of its own, and return its result or raise its error.

    The work may step back, and the thread ends with it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="aside") as aside:
        return aside.submit(work).result()


def set_idle_priority() -> None:
    """Let this thread take only what CPU the others leave, to its end: without a privilege none can step forward again.

    Threads that it starts are like it. A niceness alone leaves it its turn once it has a core, and a core that it has looks busy
    to those who wake; under SCHED_IDLE it gives way at once. Where that is refused the niceness stays.
    """
    with suppress(OSError, AttributeError):  # Not Linux: a thread has no priority of its own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

"""How many threads to compute with: what this process may use, which is not what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup/cpu.max")


def allowed_cpus(affinity: int, cpu_max: str | None) -> int:
    """Return the CPUs that a process may use: its affinity, cut by a cgroup quota such as ``"150000 100000"``.

    A quota is rounded up: a thread too many waits a little, a thread too few leaves time unused that is paid for.
    """
    quota, _, period = (cpu_max or "max").strip().partition(" ")
    if quota == "max" or not period:
        return affinity
    return max(1, min(affinity, math.ceil(int(quota) / int(period))))


def count_cpus() -> int:
    """Ask this machine."""
    try:
        cpu_max = _CGROUP.read_text(encoding="ascii")
    except OSError:  # No cgroup of version 2, so no quota that could be read.
        cpu_max = None
    return allowed_cpus(len(os.sched_getaffinity(0)), cpu_max)

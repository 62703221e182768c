"""Memory: how much is left to this process, which is not what the machine has, and giving back what it does not use."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from twofold_server.cgroups import read_file, read_groups

_MEMINFO = Path("/proc/meminfo")
_M_ARENA_MAX = -8
"""As glibc's malloc.h has it."""
_ARENAS = 2


def free_bytes(meminfo: str, limit: str | None, used: str | None, statistics: str | None) -> int | None:
    """Return what can be allocated without swapping: what the machine has left, cut by what its cgroup has left.

    *meminfo* is /proc/meminfo; *limit*, *used* and *statistics* are a cgroup's memory.max, memory.current and
    memory.stat. Files that the cgroup has cached count as free, since the kernel drops them first. None if nobody says.
    """
    left: list[int] = []
    if found := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE):
        left.append(1024 * int(found[1]))
    if limit and used and limit.strip() != "max":
        cached = re.search(r"^inactive_file (\d+)", statistics or "", re.MULTILINE)
        left.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(0, min(left)) if left else None


def count_free_bytes() -> int | None:
    """Ask this machine; None where it cannot say."""
    meminfo, groups = read_file(_MEMINFO) or "", read_groups("memory.max", "memory.current", "memory.stat")
    left = [free_bytes(meminfo, *group) for group in groups]
    return min((one for one in left if one is not None), default=None)


def share_arenas() -> None:
    """Let all threads allocate from two arenas. To be called before there are threads.

    By default glibc gives each thread its own, and what is free in one is lost to the others. It took an eighth more memory.
    """
    try:
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, _ARENAS)
    except (OSError, AttributeError):  # Not glibc.
        return


def release_memory() -> None:
    """Give freed pages back to the system: glibc keeps them otherwise, and every swap would cost a copy for ever."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # Not glibc: nothing to give back.
        return

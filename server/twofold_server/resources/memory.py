"""Memory: how much is left to this process, which is not what the machine has, and how it is allocated."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twofold_server.resources.cgroups import read_file, read_groups

_MEMINFO = Path("/proc/meminfo")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""As glibc's malloc.h has them."""
_ARENAS = 2
_TRIM_BYTES = 16 << 20
"""Bytes that an arena keeps at its end when they are freed. What is larger is a mapping of its own."""
_WEIGHT_BYTES = 128 << 10
"""Bytes of a piece of weights; in int8 the smallest ones of MiniLM have a little more."""


def free_bytes(meminfo: str, limit: str | None, used: str | None, statistics: str | None) -> int | None:
    """Return what can be allocated without swapping: what the machine has left, cut by what its cgroup has left.

    *meminfo* is /proc/meminfo; *limit*, *used* and *statistics* are a cgroup's memory.max, memory.current and
    memory.stat. Files that the cgroup has cached count as free, since the kernel drops them first. None if nobody says.
    """
    limits: list[int] = []
    if match := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE):
        limits.append(1024 * int(match[1]))
    if limit and used and limit.strip() != "max":
        cached = re.search(r"^inactive_file (\d+)", statistics or "", re.MULTILINE)
        limits.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(0, min(limits)) if limits else None


def count_free_bytes() -> int | None:
    """Ask this machine; None where it cannot say."""
    meminfo, groups = read_file(_MEMINFO) or "", read_groups("memory.max", "memory.current", "memory.stat")
    limits = [free_bytes(meminfo, *group) for group in groups]
    return min((limit for limit in limits if limit is not None), default=None)


def configure_malloc() -> None:
    """Let all threads allocate from two arenas that keep what passes free. To be called before there are threads.

    By default glibc gives each thread an arena of its own, and what is free in one is lost to the others: an eighth more memory.
    And it learns from what is freed how much to keep, which a pass then has to be given again, page by page.
    """
    _mallopt(_M_ARENA_MAX, _ARENAS)
    _mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    _mallopt(_M_MMAP_THRESHOLD, _TRIM_BYTES)


@contextmanager
def allocate_with_mmap() -> Iterator[None]:
    """Let the large pieces that are allocated meanwhile, by any thread, be mappings of their own: a session's weights.

    The system has each of them back when it is freed, whatever is in use around it; where an arena held them it would have to be
    searched for free pages under the lock that every pass needs. See ADR 19.
    """
    _mallopt(_M_MMAP_THRESHOLD, _WEIGHT_BYTES)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_THRESHOLD, _TRIM_BYTES)


def _mallopt(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):  # Not glibc.
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)

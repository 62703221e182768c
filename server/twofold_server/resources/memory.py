"""The memory available to this process, and the configuration of malloc."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twofold_server.resources.cgroups import read_file, read_groups

_MEMINFO = Path("/proc/meminfo")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(), from glibc's malloc.h."""
_ARENAS = 2
_TRIM_BYTES = 16 << 20
"""Free bytes that an arena retains at its end. Larger allocations are separate mappings."""
_WEIGHT_BYTES = 128 << 10
"""Minimum bytes of a weight tensor to get a separate mapping; the smallest int8 matrices of MiniLM are slightly larger."""


def free_bytes(meminfo: str, limit: str | None, used: str | None, statistics: str | None) -> int | None:
    """Return the bytes that can be allocated without swapping: the minimum of the machine's and the cgroup's free memory.

    *meminfo* is /proc/meminfo; *limit*, *used* and *statistics* are a cgroup's memory.max, memory.current and
    memory.stat. The cgroup's inactive file cache counts as free, since the kernel drops it first. None if unknown.
    """
    limits: list[int] = []
    if match := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE):
        limits.append(1024 * int(match[1]))
    if limit and used and limit.strip() != "max":
        cached = re.search(r"^inactive_file (\d+)", statistics or "", re.MULTILINE)
        limits.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(0, min(limits)) if limits else None


def count_free_bytes() -> int | None:
    """Return the bytes available to this process; None if unknown."""
    meminfo, groups = read_file(_MEMINFO) or "", read_groups("memory.max", "memory.current", "memory.stat")
    limits = [free_bytes(meminfo, *group) for group in groups]
    return min((limit for limit in limits if limit is not None), default=None)


def configure_malloc() -> None:
    """Let all threads allocate from two arenas that retain freed memory between passes. Call it before threads start.

    By default glibc gives each thread an arena, and threads cannot use memory that is free in another arena: an eighth more
    memory in total. Its dynamic thresholds also return freed memory, which each pass then has to fault in page by page.
    """
    _mallopt(_M_ARENA_MAX, _ARENAS)
    _mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    _mallopt(_M_MMAP_THRESHOLD, _TRIM_BYTES)


@contextmanager
def allocate_with_mmap() -> Iterator[None]:
    """Give large allocations, made by any thread during the block, separate mappings. Used for the weights of a session.

    A mapping returns to the system when it is freed. An arena would have to be trimmed for that, under a lock that every pass
    needs. See ADR 19.
    """
    _mallopt(_M_MMAP_THRESHOLD, _WEIGHT_BYTES)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_THRESHOLD, _TRIM_BYTES)


def _mallopt(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):  # Not glibc.
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)

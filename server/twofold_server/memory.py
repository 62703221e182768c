"""How much memory is left to this process, which is not what the machine has."""

from __future__ import annotations

import re
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


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

    def read(path: Path) -> str | None:
        try:
            return path.read_text(encoding="ascii")
        except OSError:
            return None

    cgroup = (read(_CGROUP / name) for name in ("memory.max", "memory.current", "memory.stat"))
    return free_bytes(read(_MEMINFO) or "", *cgroup)

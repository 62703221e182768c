"""Control groups (cgroup v2) of this process: its group and all parent groups."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_HIERARCHY = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def read_groups(*names: str) -> list[tuple[str | None, ...]]:
    """Read the files *names* in the group of the process and in each parent group; None for a missing file.

    In a container the group is usually the root of the visible hierarchy; the group of a systemd unit is deep in it.
    """
    group = find_group(read_file(_MEMBERSHIP) or "")
    folders = [_HIERARCHY / path for path in (group, *group.parents)]
    return [tuple(read_file(folder / name) for name in names) for folder in folders]


def find_group(membership: str) -> PurePosixPath:
    """Return the path of a group below the root of the hierarchy, given /proc/PID/cgroup; the root if it is not listed."""
    for line in membership.splitlines():
        if line.startswith("0::/"):
            group = PurePosixPath(line.removeprefix("0::/"))
            return PurePosixPath() if ".." in group.parts else group  # ".." means outside the visible hierarchy.
    return PurePosixPath()


def read_file(path: Path) -> str | None:
    """Read a file of the kernel; None if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None

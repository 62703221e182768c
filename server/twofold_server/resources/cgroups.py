"""Control groups (version 2): what the process's own group may use, and every group above it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_HIERARCHY = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def read_groups(*names: str) -> list[tuple[str | None, ...]]:
    """Read files of these *names* in each group, the process's own first; None for one that is not there.

    In a container its own group is usually the root of the hierarchy that it sees; under systemd, a unit's is deep in it.
    """
    group = find_group(read_file(_OWN) or "")
    folders = [_HIERARCHY / path for path in (group, *group.parents)]
    return [tuple(read_file(folder / name) for name in names) for folder in folders]


def find_group(membership: str) -> PurePosixPath:
    """Return a process's group below the hierarchy's root, given its /proc/PID/cgroup; the root where it does not say."""
    for line in membership.splitlines():
        if line.startswith("0::/"):
            group = PurePosixPath(line.removeprefix("0::/"))
            return PurePosixPath() if ".." in group.parts else group  # It is outside of what is seen here.
    return PurePosixPath()


def read_file(path: Path) -> str | None:
    """Read a file of the kernel's; None where it has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None

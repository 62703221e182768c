"""Detection of files that are replaced while the server runs."""

from __future__ import annotations

from pathlib import Path


class FileWatcher:
    """Detects whether any of the files changed since the last check. Construct it before the files are first read."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._last = self._snapshot()

    def has_changed(self) -> bool:
        """Return whether a file changed since the last check."""
        before, self._last = self._last, self._snapshot()
        return before != self._last

    def _snapshot(self) -> list[tuple[int, int, int] | None]:
        return [_version_of(path) for path in self._paths]


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

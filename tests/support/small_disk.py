"""A disk of a few megabytes that can be filled or made read-only."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Fill the disk up to *free* bytes."""
        descriptor = os.open(self._filler, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        try:
            while True:
                os.write(descriptor, b"x" * 4096)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - leave))
            os.close(descriptor)

    def free(self) -> None:
        """Free the disk."""
        self._filler.unlink()

    def make_read_only(self) -> None:
        """Make the disk read-only. No file on it may be open for writing."""
        _mount("-o", "remount,ro", str(self.path))


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """Mount a tmpfs until the block ends."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    path.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {error.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)

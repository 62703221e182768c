"""Expensive objects that are built once per test run, for all workers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """Return what *make* built in a separate directory. The first caller builds it, the others wait; nobody may change it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # The one that all workers share.
    made = root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            path = make(factory.mktemp(name))
            made.write_text(str(path), encoding="utf-8")
    return Path(made.read_text(encoding="utf-8"))

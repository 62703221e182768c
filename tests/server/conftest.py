"""A store of two checkpoints that answer recognisably differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from twofold_checkpoint.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store of the checkpoints "a" (current) and "b"."""
    return tiny.make_store(tmp_path / "store", "a", "b")

"""Fixtures of the tests of adaptation."""

from __future__ import annotations

from pathlib import Path

import pytest
from server.adaptation.scripted import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A store with one checkpoint and a trainer that plays scripts."""
    return House(tmp_path)

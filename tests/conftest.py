"""The order in which all tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONG = ("e2e", "trainer")
"""Rooms whose files take minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first: then the workers, which take whole files, have short ones left at the end."""
    items.sort(key=lambda item: not set(LONG) & set(item.path.relative_to(TESTS).parts))

"""The order in which all tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONG = ("e2e", "docs", "trainer", "benchmarks")
"""Folders with long files, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first. The workers take whole files, so short ones are left for the end, and both finish together."""
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.relative_to(TESTS).parts[0], len(ranks)))

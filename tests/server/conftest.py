"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny_checkpoints
from support.postgresql import PostgreSQL, postgresql_server
from support.scripted_trainer import Harness
from twofold_checkpoint.store import Store
from twofold_server.storage.database import DatabaseLocation

BOTH = ("sqlite", "postgresql")


@pytest.fixture
def database() -> str:
    """The kind of database; tests for both use parametrization."""
    return "sqlite"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
def location(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> DatabaseLocation:
    """The location of the job database."""
    if database == "sqlite":
        return tmp_path / "jobs.sqlite3"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.make_database()


@pytest.fixture
def harness(tmp_path: Path, location: DatabaseLocation) -> Harness:
    """A store with one checkpoint and a trainer that plays scripts."""
    harness = Harness(tmp_path)
    if not isinstance(location, Path):
        harness.set(database=location)
    return harness


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the checkpoints "a" (current) and "b"."""
    return tiny_checkpoints.make_store(tmp_path / "store", "a", "b")

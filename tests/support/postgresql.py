"""A real PostgreSQL server for the tests, on a separate socket."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from twofold_server.config.database_url import DatabaseUrl

_SETTINGS = {"listen_addresses": "''", "fsync": "off", "max_connections": "40", "log_min_messages": "panic"}


class PostgreSQL:
    """A running server and its databases."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._numbers = itertools.count()

    def make_database(self) -> DatabaseUrl:
        """Create an empty database, and return its address."""
        name = f"jobs{next(self._numbers)}"
        self.ask("template1", f"CREATE DATABASE {name}")
        return DatabaseUrl(f"postgresql://twofold:secret@/{name}?host={self.directory}")

    def ask(self, database: str, statement: str) -> None:
        """Execute a statement, and return its output."""
        with psycopg.connect(host=str(self.directory), user="twofold", dbname=database, autocommit=True) as connection:
            connection.execute(statement)

    def hang_up(self) -> None:
        """Close every connection, as a restart of the server does."""
        self.ask("template1", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


def binaries() -> Path | None:
    """Return the directory of the newest installed server."""
    actual = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    there = shutil.which("initdb")
    return actual[-1].parent if actual else Path(there).resolve().parent if there else None


@contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    """Run a server until the block ends. As root, it runs as the user "postgres", because the server refuses to run as root."""
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL server is installed; Debian's package is called postgresql")
    # Not in tmp_path: no other user may go there, and the path of a socket is bounded.
    directory = Path(tempfile.mkdtemp(prefix="twofold-postgresql-"))
    user = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(directory, user)
    try:
        made = ["--auth=trust", "--username=twofold", "--no-sync", "--encoding=UTF8", "--no-locale"]
        command = [where / "initdb", *made, "--pgdata", directory / "data"]
        subprocess.run(command, check=True, user=user, capture_output=True, cwd=directory)
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        options = " ".join([*settings, f"-k{directory}"])
        control = [where / "pg_ctl", "--pgdata", directory / "data", "--wait", "--silent"]
        start = [*control, "--log", directory / "log", "--options", options, "start"]
        subprocess.run(start, check=True, user=user, cwd=directory, stdout=subprocess.DEVNULL)
        try:
            yield PostgreSQL(directory)
        finally:
            subprocess.run([*control, "--mode", "immediate", "stop"], check=True, user=user, cwd=directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)

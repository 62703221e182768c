"""Connections to SQLite or PostgreSQL with the same semantics: snapshot reads and one writer at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Double,
    Engine,
    cast,
    create_engine,
    event,
    extract,
    func,
    literal,
    make_url,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from twofold_server.config.database_url import DatabaseUrl
from twofold_server.errors import DatabaseError, FailedPreconditionError
from twofold_server.storage.migrate import migrate

log = logging.getLogger(__name__)

DatabaseLocation = Path | DatabaseUrl
"""Path of an SQLite file, or URL of a PostgreSQL database."""

_WRITER_LOCK_ID = 0x74776F66  # "twof": the advisory lock that writers take.
_SESSION = (
    "SET idle_in_transaction_session_timeout = '10s'",  # Frees the lock of a writer that froze.
    "SET lock_timeout = '20s'",
    "SET synchronous_commit = 'on'",
)
_TIMEOUTS = {"connect_timeout": "10", "tcp_user_timeout": "10000"}
"""Connection timeouts, unless the URL sets them."""


class Database:
    """Transactions on one connection, for use by one thread. Migrates the schema on opening.

    With *migrates* False, the schema and the SQLite settings stay as they are.

    Raises DatabaseError, or FailedPreconditionError if the schema is newer than this version or psycopg is missing.
    """

    def __init__(self, location: DatabaseLocation, *, migrates: bool = True) -> None:
        self._name = location.name if isinstance(location, Path) else str(location)
        self.is_shared = isinstance(location, DatabaseUrl)
        """Whether several servers may use the database at once."""
        self._engine = _engine(location, as_it_is=not migrates)
        self._open: Connection | None = None
        if not migrates:
            return
        try:
            with self.writing() as connection:
                migrate(connection)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read transaction on committed data. Within another transaction, join that one."""
        if self._open:
            yield self._open
            return
        with self._translate_errors(), self._engine.connect() as connection, self._joinable(connection):
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open an exclusive write transaction, durable once the block ends."""
        engine = self._engine.execution_options(writes=True)
        with self._translate_errors(), engine.begin() as connection, self._joinable(connection):
            yield connection

    @contextmanager
    def _joinable(self, connection: Connection) -> Iterator[None]:
        self._open = connection
        try:
            yield
        finally:
            self._open = None

    @property
    def clock(self) -> ColumnElement[float]:
        """Seconds since 1970, by the clock that all servers of the database share."""
        return cast(extract("epoch", func.clock_timestamp()), Double) if self.is_shared else literal(time.time())

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise DatabaseError instead of driver errors, which quote statements and their parameters."""
        try:
            yield
        except DBAPIError as error:
            reason = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
            log.error("the database failed", extra={"database": self._name, "reason": reason})  # noqa: TRY400 -- no bug: a traceback adds nothing.
            # Callers must not see the database's address or user name.
            message = "it does not answer" if self.is_shared and not getattr(error.orig, "sqlstate", None) else reason
            raise DatabaseError(f"the database of jobs failed: {message}") from None
        except SQLAlchemyError as error:
            raise DatabaseError(f"the database of jobs failed: {type(error).__name__}") from error


def _engine(location: DatabaseLocation, *, as_it_is: bool) -> Engine:
    # One connection for one thread. Parameters are hidden in errors because they contain user text.
    shape: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "hide_parameters": True}
    if isinstance(location, Path):
        engine = create_engine(URL.create("sqlite+pysqlite", database=str(location)), **shape)
        event.listen(engine, "connect", _disable_driver_transactions if as_it_is else _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    url = make_url(location.reveal())
    timeouts = {name: value for name, value in _TIMEOUTS.items() if name not in url.query}
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args=timeouts, **shape)
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            "PostgreSQL needs the driver psycopg; install twofold-service[postgresql], or leave out --database"
        ) from error
    event.listen(engine, "connect", _prepare_postgresql)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _disable_driver_transactions(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # Stops the driver from opening transactions implicitly.


def _prepare_sqlite(connection: Any, _: Any) -> None:
    _disable_driver_transactions(connection, _)
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgresql(connection: Any, _: Any) -> None:
    for statement in _SESSION:
        connection.execute(statement)
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    """Take the writer lock until the transaction ends, as SQLite does by itself."""
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK_ID})")


def is_writable(connection: Connection, *, has_tables: bool) -> bool:
    """Return whether a PostgreSQL database grants the rights that a server needs to write."""
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
        return False
    if not has_tables:
        query = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
    else:
        rights = " AND ".join(f"has_table_privilege('jobs', '{right}')" for right in ("INSERT", "UPDATE", "DELETE"))
        query = f"SELECT {rights}"
    return bool(connection.exec_driver_sql(query).scalar_one())

"""A connection to SQLite or to PostgreSQL, which read alike and write one at a time."""

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
from twofold_server.storage.migrations import migrate

log = logging.getLogger(__name__)

DatabaseLocation = Path | DatabaseUrl
"""A file of SQLite, or the address of a PostgreSQL database."""

_WRITER_LOCK_ID = 0x74776F66  # "twof": the advisory lock of whoever writes.
_SESSION = (
    "SET idle_in_transaction_session_timeout = '10s'",  # A server that froze while it wrote lets the others go on.
    "SET lock_timeout = '20s'",
    "SET synchronous_commit = 'on'",
)
_TIMEOUTS = {"connect_timeout": "10", "tcp_user_timeout": "10000"}
"""How long a server that is gone is waited for, unless the address says otherwise."""


class Database:
    """Give transactions of one connection, for one thread. The schema is brought up to date at first.

    With *migrates* False nothing is done but what a transaction does.

    Raises DatabaseError, FailedPreconditionError if the schema is newer than what is known here, or if psycopg is missing.
    """

    def __init__(self, location: DatabaseLocation, *, migrates: bool = True) -> None:
        self._name = location.name if isinstance(location, Path) else str(location)
        self.is_shared = isinstance(location, DatabaseUrl)
        """Whether several servers may have it at once."""
        self._engine = _engine(location, as_it_is=not migrates)
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
        """Open a transaction that sees what is committed."""
        with self._translate_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that is alone in writing, and lasts once the block has ended."""
        with self._translate_errors(), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    @property
    def clock(self) -> ColumnElement[float]:
        """Seconds since 1970, by the clock that all who have the database share."""
        return cast(extract("epoch", func.clock_timestamp()), Double) if self.is_shared else literal(time.time())

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Let errors be ours: those of drivers quote statements and what is in them."""
        try:
            yield
        except DBAPIError as error:
            reason = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
            log.error("the database failed", extra={"database": self._name, "reason": reason})  # noqa: TRY400 -- told, and no bug of ours.
            # Where a server is and who we are there is not for callers.
            message = "it does not answer" if self.is_shared and not getattr(error.orig, "sqlstate", None) else reason
            raise DatabaseError(f"the database of jobs failed: {message}") from None
        except SQLAlchemyError as error:
            raise DatabaseError(f"the database of jobs failed: {type(error).__name__}") from error


def _engine(location: DatabaseLocation, *, as_it_is: bool) -> Engine:
    # One connection for the one thread; parameters are not shown, as there are texts of callers among them.
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
    connection.isolation_level = None  # So that the driver begins no transactions of its own.


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
    """Wait for this writer's turn, which ends with its transaction: what SQLite does by itself."""
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK_ID})")


def is_writable(connection: Connection, *, has_tables: bool) -> bool:
    """Tell whether a PostgreSQL database takes what a server writes."""
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
        return False
    if not has_tables:
        query = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
    else:
        rights = " AND ".join(f"has_table_privilege('jobs', '{right}')" for right in ("INSERT", "UPDATE", "DELETE"))
        query = f"SELECT {rights}"
    return bool(connection.exec_driver_sql(query).scalar_one())

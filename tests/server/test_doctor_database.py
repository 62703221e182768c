"""`twofold-server doctor`: the database, certificates and the trace collector."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import sqlite3
from contextlib import closing

import pytest
import trustme
from server.security.test_tls import Files
from server.test_doctor import checks_of
from support.postgresql import postgresql_server
from support.running_server import config_of
from support.small_disk import small_disk
from twofold_server.config.database_url import DatabaseUrl
from twofold_server.config.settings import Config
from twofold_server.storage.database import Database


def sql(*statements):
    """Return a function that executes SQL in an SQLite file."""

    def do(path):
        with closing(sqlite3.connect(path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return do


def schema(revision):
    """Return a function that writes another revision into a migrated database."""

    def do(path):
        Database(path).close()
        sql(f"UPDATE alembic_version SET version_num = '{revision}'")(path)

    return do


FILES = [
    pytest.param(lambda path: None, "ok", "does not exist yet; the server creates it", "", id="none"),
    pytest.param(sql("PRAGMA user_version = 0"), "ok", "it is empty; the server creates its tables", "", id="empty"),
    pytest.param(lambda path: Database(path).close(), "ok", "schema 0003 is current", "", id="current"),
    pytest.param(schema("0002"), "warning", "needs migration 0003", "Back up the database first", id="older"),
    pytest.param(
        schema("0001"),
        "warning",
        "has schema 0001 and needs migration 0002 and 0003",
        "Back up the database first",
        id="oldest",
    ),
    pytest.param(schema("9999"), "failed", "has schema 9999, of a newer", "Start the newer", id="newer"),
    pytest.param(lambda path: path.write_bytes(b"no" * 999), "failed", "not a database", "Give user", id="damaged"),
    pytest.param(lambda path: path.mkdir(), "failed", "unable to open", "Give user", id="a-directory"),
]


@pytest.mark.parametrize(("make", "state", "message", "fix"), FILES)
def test_a_file(store, make, state, message, fix):
    """A fault of the job database is reported with its fix, and the file does not change."""
    path = store.root / "jobs.sqlite3"
    make(path)
    before = path.read_bytes() if path.is_file() else None

    check = checks_of(config_of(store))["database"]

    assert check.state == state
    assert message in check.message
    assert check.fix.startswith(fix)
    assert bool(check.fix) is (state != "ok")
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_file_that_somebody_holds(store):
    """A write lock of another process is reported as such."""
    path = store.root / "jobs.sqlite3"
    Database(path).close()
    with closing(sqlite3.connect(path)) as second:
        second.execute("BEGIN IMMEDIATE")
        check = checks_of(config_of(store))["database"]

    assert (check.state, "database is locked" in check.message, "fuser" in check.fix) == ("failed", True, True)


def test_a_file_on_a_read_only_disk(store, tmp_path):
    """A database that cannot be written fails, and so does its store."""
    with small_disk(tmp_path / "disk", 8) as disk:
        root = disk.path / "store"
        shutil.copytree(store.root, root)
        Database(root / "jobs.sqlite3").close()
        disk.make_read_only()
        checks = checks_of(Config(store=root))

    assert (checks["store"].state, checks["database"].state) == ("failed", "failed")


@pytest.fixture(scope="module")
def postgresql():
    """A PostgreSQL server."""
    with postgresql_server() as server:
        yield server


def read_only(server, name):
    """Make a database read-only."""
    server.ask("template1", f"ALTER DATABASE {name} SET default_transaction_read_only = on")


SHARED = [
    pytest.param(False, lambda *_: None, "ok", "it is empty", "", id="empty"),
    pytest.param(True, lambda *_: None, "ok", "schema 0003 is current", "", id="current"),
    pytest.param(True, read_only, "failed", "cannot be written", "Check --database", id="read-only"),
    pytest.param(
        True,
        lambda server, name: server.ask(name, "UPDATE alembic_version SET version_num = '0002'"),
        "warning",
        "needs migration 0003",
        "Back up the database first",
        id="older",
    ),
    pytest.param(
        True,
        lambda server, name: server.ask(name, "UPDATE alembic_version SET version_num = '9999'"),
        "failed",
        "of a newer",
        "Start the newer",
        id="newer",
    ),
]


@pytest.mark.parametrize(("made", "change", "state", "message", "fix"), SHARED)
def test_postgresql(store, postgresql, *, made, change, state, message, fix):
    """The state of a shared database is reported, without its password."""
    url = postgresql.make_database()
    name = url.reveal().partition("@/")[2].partition("?")[0]
    if made:
        Database(url).close()
    change(postgresql, name)

    check = checks_of(config_of(store, database=url))["database"]

    assert check.state == state
    assert message in check.message
    assert check.fix.startswith(fix)
    assert "secret" not in check.message + check.fix


def test_a_user_without_rights(store, postgresql):
    """A user who may read but not write is reported before the first job is lost."""
    url = postgresql.make_database()
    Database(url).close()
    name = url.reveal().partition("@/")[2].partition("?")[0]
    postgresql.ask(name, "DROP ROLE IF EXISTS reader")
    postgresql.ask(name, "CREATE ROLE reader LOGIN")
    postgresql.ask(name, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    reader = DatabaseUrl(url.reveal().replace("twofold:secret@", "reader@"))

    check = checks_of(config_of(store, database=reader))["database"]

    assert (check.state, "lacks a permission" in check.message) == ("failed", True)
    postgresql.ask(name, "DROP OWNED BY reader")


def test_a_database_that_does_not_answer(store):
    """If the database does not answer, the setting is named."""
    check = checks_of(config_of(store, database=DatabaseUrl("postgresql://me:secret@127.0.0.1:1/jobs")))["database"]

    assert (check.state, "does not answer" in check.message) == ("failed", True)
    assert "--database" in check.fix


DAYS = [(90, "ok", ""), (3, "warning", "Renew it"), (-1, "failed", "Renew it")]


@pytest.mark.parametrize(("days", "state", "fix"), DAYS)
def test_a_certificate_that_ends(store, tmp_path, *, days, state, fix):
    """A certificate that expires within two weeks is a warning, and an expired one fails."""
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    files = Files(tmp_path)
    files.issue(trustme.CA(), not_after=ends)
    files.write()
    settings = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}

    check = checks_of(config_of(store, **settings))["tls"]

    assert (check.state, check.fix.startswith(fix)) == (state, True)
    assert (f"{ends:%Y-%m-%d}" if days > 0 else "has expired") in check.message


def test_a_collector_of_traces(store):
    """A trace collector that does not answer is a warning, because the server works without it."""
    assert "traces" not in checks_of(config_of(store))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert checks_of(config_of(store, trace_endpoint=there))["traces"].state == "ok"

    gone = checks_of(config_of(store, trace_endpoint="http://127.0.0.1:1"))["traces"]
    assert (gone.state, "spans are dropped" in gone.fix) == ("warning", True)

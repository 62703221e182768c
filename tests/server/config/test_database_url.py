"""The database URL is read completely, and shown without its secrets."""

from __future__ import annotations

import dataclasses

import pytest
from support.server_command import read_config, run_command
from twofold_server.config.database_url import DatabaseUrl
from twofold_server.config.settings import Config

SHOWN = [
    ("postgresql://me:secret@db:5432/jobs", "postgresql://me:***@db:5432/jobs"),
    ("postgres://me:secret@db/jobs?sslpassword=secret", "postgresql://me:***@db/jobs?***"),
    ("postgresql+psycopg://db/jobs", "postgresql://db/jobs"),
    ("postgresql:///jobs?host=/run/postgresql&password=secret", "postgresql:///jobs?***"),
    ("postgresql://me@[::1]:5432/", "postgresql://me@[::1]:5432/"),
    ("postgresql://me:se%40cret@db/jobs", "postgresql://me:***@db/jobs"),
]
WRONG = [
    "secret",
    "sqlite:///secret.db",
    "mysql://me:secret@db/jobs",
    "postgresql://me:1/secret@db/jobs",
    "postgresql://me:secret/x@db/jobs",
    "postgresql://me:sec#ret@db/jobs",
    "postgresql://me:[secret@db/jobs",
    "postgresql://me/secret:x@db/jobs",
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_an_address_shows_no_secret(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No representation of the settings shows a password, but the connection gets it."""
    config = read_config([], {"TWOFOLD_DATABASE": text})

    assert config.database is not None
    assert str(config.database) == shown
    assert shown in repr(config)
    run_command("print-config", "--database", text)
    toml = capsys.readouterr().out
    assert f'database = "{shown}"  # flag --database' in toml
    printed = (toml, str(config), repr(config), f"{config.database}", str(dataclasses.asdict(config)))
    assert not any("secret" in item or "se%40cret" in item for item in printed)
    assert config.database.reveal() == "postgresql+psycopg:" + text.partition(":")[2]
    assert config.database == DatabaseUrl(text) != DatabaseUrl("postgresql://other/jobs")


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("source", ["flag", "variable"])
def test_a_wrong_address_is_not_quoted(text: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid URL is rejected with usage, and not quoted, because it may contain a password."""
    arguments = (["--database", text], {}) if source == "flag" else ([], {"TWOFOLD_DATABASE": text})
    with pytest.raises(SystemExit):
        read_config(*arguments)

    message = capsys.readouterr().err
    assert "write postgresql://USER:PASSWORD@HOST:PORT/NAME" in message
    assert "secret" not in message
    assert source != "variable" or "TWOFOLD_DATABASE is not a PostgreSQL URL" in message


def test_without_an_address_jobs_are_in_the_store() -> None:
    """Without a URL, jobs are stored in the store."""
    assert Config().database is None

"""The alias history, in the job database."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Connection, func, insert, select
from twofold_checkpoint.store import Aliases, AliasUpdate

from twofold_server.storage.database import Database
from twofold_server.storage.schema import ALIAS_CHANGES
from twofold_server.versions.alias_changes import OUTSIDE, AliasChange, Author, changed_aliases

_UNKNOWN_AUTHOR = Author(OUTSIDE, "The change was detected when a server started.")


class AliasTable:
    """The history of alias changes; the store holds the aliases. All methods block and may raise DatabaseError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, update: AliasUpdate, author: Author, now: dt.datetime) -> None:
        """Record the changes of an update."""
        with self._database.writing() as connection:
            _write(connection, update, author, now)

    def catch_up(self, aliases: Aliases, now: dt.datetime) -> None:
        """Record changes that no server recorded, because it died or because another process made them."""
        newest = select(func.max(ALIAS_CHANGES.c.number)).group_by(ALIAS_CHANGES.c.alias)
        last = select(ALIAS_CHANGES.c.alias, ALIAS_CHANGES.c.to_id).where(ALIAS_CHANGES.c.number.in_(newest))
        with self._database.writing() as connection:
            known = Aliases(**{row.alias: row.to_id for row in connection.execute(last)})
            _write(connection, AliasUpdate(known, aliases), _UNKNOWN_AUTHOR, now)

    def page(self, size: int, before: int | None) -> tuple[list[AliasChange], int | None]:
        """Return up to *size* changes below number *before*, newest first, and the number for the next page, if there is one."""
        query = select(ALIAS_CHANGES).order_by(ALIAS_CHANGES.c.number.desc()).limit(size + 1)
        if before is not None:
            query = query.where(ALIAS_CHANGES.c.number < before)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        changes = [
            AliasChange(
                number=row.number,
                time=dt.datetime.fromisoformat(row.time),
                alias=row.alias,
                from_id=row.from_id,
                to_id=row.to_id,
                author=Author(row.actor, row.reason),
            )
            for row in rows[:size]
        ]
        return changes, rows[size - 1].number if len(rows) > size else None


def _write(connection: Connection, update: AliasUpdate, author: Author, now: dt.datetime) -> None:
    rows = [
        {
            "time": now.isoformat(),
            "alias": alias,
            "from_id": before,
            "to_id": after,
            "actor": author.actor,
            "reason": author.reason,
        }
        for alias, before, after in changed_aliases(update)
    ]
    if rows:
        connection.execute(insert(ALIAS_CHANGES), rows)

"""Migration of the database schema to this release, with Alembic. See ADR 43."""

from __future__ import annotations

import logging
from typing import NamedTuple

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from twofold_server.errors import FailedPreconditionError
from twofold_server.storage.schema import JOBS

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)  # It would log its setup at every start.

_SCRIPTS = "twofold_server.storage:migrations"


class SchemaState(NamedTuple):
    """The schema of a database, compared with this release."""

    revision: str | None
    """None if the database is empty."""
    latest: str
    """Latest revision of this release."""
    pending: tuple[str, ...]
    """Revisions to apply, oldest first."""

    @property
    def is_newer(self) -> bool:
        """Whether a newer release created the schema."""
        return self.revision != self.latest and not self.pending


def read_schema_state(connection: Connection) -> SchemaState:
    """Return the state of the schema. Raises FailedPreconditionError if an unreleased version created it."""
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None and inspect(connection).has_table(JOBS.name):
        raise FailedPreconditionError(
            "the database of jobs was created before version 0.1.0 and cannot be migrated; move it away, which loses its jobs"
        )
    history = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]
    if revision is None:
        pending = history
    elif revision in history:
        pending = history[history.index(revision) + 1 :]
    else:
        pending = []
    return SchemaState(revision, history[-1], tuple(pending))


def migrate(connection: Connection) -> None:
    """Apply pending migrations in the open transaction. Raises FailedPreconditionError if the schema is newer."""
    state = read_schema_state(connection)
    if state.is_newer:
        raise FailedPreconditionError(
            f"the schema {state.revision} of the jobs is newer than {state.latest}, the latest of this version; start the newer "
            "twofold-server that created it, or restore an older backup of the database"
        )
    if not state.pending:
        return
    upgrade(connection, "head")
    if state.revision:
        log.info("database migrated", extra={"from": state.revision, "to": state.latest})


def upgrade(connection: Connection, revision: str) -> None:
    """Apply the migrations up to a revision in the open transaction."""
    config = _config()
    config.attributes["connection"] = connection  # migrations/env.py uses it.
    command.upgrade(config, revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    return config

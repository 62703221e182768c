"""Table definitions for queries. The revisions in migrations/ create the tables; a test keeps the two consistent."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
)

SCHEMA = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")

JOBS = Table(
    "jobs",
    SCHEMA,
    Column("number", _Number, Identity(), primary_key=True),  # Creation order, assigned by the database.
    Column("id", Text, nullable=False, unique=True),
    Column("request_id", Text, unique=True),  # NULL if the caller sent none.
    Column("request_digest", Text, nullable=False),  # SHA-256 of the request.
    Column("state", Text, nullable=False),
    Column("job", LargeBinary, nullable=False),  # JSON: the replay of the job's events.
    Column("owner", Text),  # The server that runs or ran the job.
    Column(
        "cancel_requested", Boolean, nullable=False, server_default=false()
    ),  # CancelJob was called while the job ran.
    Index("jobs_by_state", "state", "number"),
)

EVENTS = Table(
    "events",
    SCHEMA,
    Column("job_number", _Number, ForeignKey("jobs.number"), primary_key=True),
    Column("sequence", _Number, primary_key=True),
    Column("time", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("event", LargeBinary, nullable=False),  # JSON.
)

SERVERS = Table(
    "servers",
    SCHEMA,
    Column("id", Text, primary_key=True),
    Column("renewed_at", Double, nullable=False),  # Seconds since 1970, by the database's clock.
)

ALIAS_CHANGES = Table(
    "alias_changes",
    SCHEMA,
    Column("number", _Number, Identity(), primary_key=True),
    Column("time", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("from_id", Text),  # NULL if the alias was unset.
    Column("to_id", Text),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index("alias_changes_by_alias", "alias", "number"),
)

"""Jobs are equally durable in SQLite and PostgreSQL, and several servers share one table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from server.jobs.test_model import EFFECTS, REPORTS, START, first
from sqlalchemy import text
from support.job_specs import job_spec
from support.postgresql import PostgreSQL
from twofold_checkpoint.protocol.events import NoteAdded
from twofold_server.config.database_url import DatabaseUrl
from twofold_server.errors import (
    ConflictError,
    DatabaseError,
    FailedPreconditionError,
    OverloadedError,
    UnknownNameError,
)
from twofold_server.jobs import table
from twofold_server.jobs.model import Job, JobState, PhaseEnded, StateEntered, replay
from twofold_server.jobs.table import JobTable
from twofold_server.storage.database import Database, DatabaseLocation
from twofold_server.storage.migrate import upgrade
from twofold_server.storage.schema import SCHEMA
from twofold_server.versions.events import RolledBack

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])
SHARED = pytest.mark.parametrize("database", ["postgresql"])
FAILED = StateEntered(state=JobState.FAILED, reason="Oh.")
ENDED = StateEntered(state=JobState.SUCCEEDED, reason="Well.")


def job(number: int, **settings: str) -> Job:
    """Return a job without events."""
    return Job(id=f"job-{number}", spec=job_spec(head="ner", **settings), created=START, base="alias")


@BOTH
def test_the_table_returns_stored_events(location: DatabaseLocation) -> None:
    """Every kind of event is read back unchanged, and the stored job is the replay of the stored events."""
    everything = [item for event, _ in (*EFFECTS, *REPORTS) for item in event]
    everything = [record for record in everything if not isinstance(record, StateEntered)]
    table = JobTable(location)
    table.add(first(), "digest", limit=9)
    for record in everything:
        table.append_event("job-1", record)
    table.close()

    table = JobTable(location)
    records, over, after = [], False, 0
    while len(records) < table.get("job-1").last_sequence:
        more, over = table.read_events("job-1", after)
        records += more
        after = records[-1].sequence

    assert [record.event for record in records if not isinstance(record.event, StateEntered | PhaseEnded)] == [
        record for record in everything if not isinstance(record, PhaseEnded)
    ]
    assert (replay(first(), records), over) == (table.get("job-1"), False)
    table.close()


@BOTH
def test_a_finished_job_has_no_more_events(location: DatabaseLocation) -> None:
    """The event with a final state is the last one."""
    table = JobTable(location)
    table.add(first(), "digest", limit=9)
    table.append_event("job-1", FAILED)

    with pytest.raises(FailedPreconditionError, match="already over: failed"):
        table.append_event("job-1", NoteAdded(message="n"))

    assert table.read_events("job-1", 0)[1]
    table.close()


@BOTH
def test_a_rollback_is_appended_after_the_end(location: DatabaseLocation) -> None:
    """A rollback is appended to a finished job as one more event, and its end stays unchanged."""
    table = JobTable(location)
    table.add(first(), "digest", limit=9)
    ended, _ = table.append_event("job-1", ENDED)
    event = RolledBack(checkpoint_id="c2", restored_id="c1", cause="errors", reason="9 of 9 failed")

    view, _ = table.append_event_after_end("job-1", event)

    records, over = table.read_events("job-1", ended.last_sequence)
    assert ([record.event for record in records], over) == ([event], True)
    assert (view.state, view.reason, view.ended) == (ended.state, ended.reason, ended.ended)
    assert table.get("job-1").report.rolled_back == event.summary
    table.close()


@BOTH
def test_a_request_id_makes_one_job_within_the_limit(location: DatabaseLocation) -> None:
    """A repeated request returns its job even if the queue is full; another request with its id, or above the limit, is rejected."""
    table = JobTable(location)
    table.add(job(1, request_id="r"), "digest", limit=1)

    assert table.add(job(2, request_id="r"), "digest", limit=1)[0].id == "job-1"
    with pytest.raises(ConflictError, match="'r' was used for job 'job-1'"):
        table.add(job(3, request_id="r"), "other", limit=9)
    with pytest.raises(OverloadedError, match="1 jobs are already queued"):
        table.add(job(4), "digest", limit=1)

    assert [item.id for item in table.unfinished()] == ["job-1"]
    table.close()


@BOTH
def test_queue_and_pages_survive(location: DatabaseLocation) -> None:
    """Queue positions and pages are the same after the table is opened again."""
    table = JobTable(location)
    for number in range(5):
        table.add(job(number), "digest", limit=9)
    table.append_event("job-1", FAILED)
    table.close()

    table = JobTable(location)
    assert [table.get(f"job-{number}").queue_position for number in range(5)] == [0, 0, 1, 2, 3]
    newest, token = table.page(2, None)
    older, last = table.page(9, token)
    assert [(item.id, item.queue_position) for item in newest] == [("job-4", 3), ("job-3", 2)]
    assert ([item.id for item in older], last) == (["job-2", "job-1", "job-0"], None)
    assert table.count_queued() == 4
    table.close()


@BOTH
@pytest.mark.parametrize("job_id", ["", "job-2", "a\0b", "\ud7ff\n", "' OR 1=1 --"])
def test_an_invalid_job_id_is_not_found(location: DatabaseLocation, job_id: str) -> None:
    """Any string in place of a job id is looked up or rejected, and never an internal error."""
    table = JobTable(location)
    table.add(first(), "digest", limit=9)

    with pytest.raises(UnknownNameError, match="there is no job"):
        table.get(job_id)

    table.close()


@BOTH
def test_migrations_create_the_tables_of_the_queries(location: DatabaseLocation) -> None:
    """Alembic finds no difference between the migrated database and the tables that the queries use."""
    database = Database(location)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SCHEMA) == []
    database.close()


def set_revision(location: DatabaseLocation, revision: str) -> None:
    """Write another revision into a database."""
    database = Database(location, migrates=False)
    with database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    database.close()


@BOTH
def test_a_newer_schema_is_rejected(location: DatabaseLocation) -> None:
    """A newer schema stays unchanged, and the error says what to do."""
    JobTable(location).close()
    set_revision(location, "9999")

    with pytest.raises(
        FailedPreconditionError, match=r"schema 9999 .* is newer than .*; start the newer twofold-server"
    ):
        JobTable(location)


@BOTH
def test_a_schema_of_an_unreleased_version_is_rejected(location: DatabaseLocation) -> None:
    """Tables without a revision stay unchanged, and the error says what to do."""
    JobTable(location).close()
    database = Database(location, migrates=False)
    with database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    database.close()

    with pytest.raises(FailedPreconditionError, match=r"before version 0\.1\.0 and cannot be migrated; move it away"):
        JobTable(location)


@BOTH
def test_a_database_of_the_first_revision_is_migrated(location: DatabaseLocation) -> None:
    """Jobs and events of an older schema are kept: the running job is abandoned, and the queued job runs."""
    database = Database(location, migrates=False)
    with database.writing() as connection:
        upgrade(connection, "0001")
        for number, state in enumerate(("running", "queued")):
            stored = msgspec.structs.replace(job(number), state=JobState(state), last_sequence=1)
            row = {"id": stored.id, "digest": "digest", "state": state, "job": msgspec.json.encode(stored)}
            connection.execute(
                text("INSERT INTO jobs (id, request_digest, state, job) VALUES (:id, :digest, :state, :job)"), row
            )
            event = msgspec.json.encode(StateEntered(state=JobState.QUEUED, reason="The job is queued."))
            row = {"number": number + 1, "time": START.isoformat(), "event": event}
            connection.execute(text("INSERT INTO events VALUES (:number, 1, :time, '', :event)"), row)
    database.close()

    table = JobTable(location)
    assert [item.id for item in table.abandoned()] == ["job-0"]
    assert table.start_next() == (None, ())
    table.append_event("job-0", FAILED)
    started, _ = table.start_next()
    assert started is not None
    assert [record.sequence for record in table.read_events(started.id, 0)[0]] == [1, 2]
    table.close()


def test_a_file_is_durable(tmp_path: Path) -> None:
    """SQLite uses a write-ahead log and syncs each transaction."""
    database = Database(tmp_path / "jobs.sqlite3")
    with database.reading() as connection:
        actual = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    database.close()

    assert actual == ["wal", 2]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """On a full disk the error has the reason but no text of the caller, and nothing is stored."""
    table = JobTable(tmp_path / "jobs.sqlite3")
    table.add(first(), "digest", limit=9)
    with table.database.reading() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    with pytest.raises(DatabaseError) as raised:
        table.append_event("job-1", NoteAdded(message="private" * 9999))

    assert str(raised.value) == "the database of jobs failed: database or disk is full"
    assert table.get("job-1").last_sequence == 1
    table.close()


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    """A file that is not a database stays unchanged."""
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"something else" * 999)

    with pytest.raises(DatabaseError, match="file is not a database"):
        JobTable(path)

    assert path.read_bytes() == b"something else" * 999


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@127.0.0.1:1/jobs", "postgresql://me:secret@/jobs?host=/nowhere"]
)
def test_a_server_that_is_not_there_is_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the database and the reason, callers learn that it does not answer, and nobody sees the password."""
    with pytest.raises(DatabaseError) as raised:
        JobTable(DatabaseUrl(url))

    assert str(raised.value) == "the database of jobs failed: it does not answer"
    assert raised.value.__cause__ is None
    [line] = caplog.records
    assert "postgresql://me:***@" in str(vars(line)["database"])
    assert "secret" not in str(vars(line))


@SHARED
def test_connections_that_break_are_made_again(location: DatabaseLocation, postgresql: PostgreSQL) -> None:
    """After a restart of the database server the next call succeeds."""
    table = JobTable(location)
    table.add(first(), "digest", limit=9)

    postgresql.hang_up()

    assert table.get("job-1").state is JobState.QUEUED
    table.close()


@SHARED
def test_many_servers_start_each_job_once_and_one_at_a_time(location: DatabaseLocation) -> None:
    """Six servers that all ask for jobs get each job on one server only, in order, and never two at a time."""
    tables = [JobTable(location, owner=f"server-{number}") for number in range(6)]
    for number in range(30):
        tables[number % 6].add(job(number), "digest", limit=99)
    started: list[str] = []

    def serve(table: JobTable) -> int:
        actual = 0
        while table.unfinished():
            view, records = table.start_next()
            if view:
                assert [second.id for second in table.unfinished() if second.state is JobState.RUNNING] == [view.id]
                assert records
                started.append(view.id)
                table.append_event(view.id, ENDED)
                actual += 1
        return actual

    with ThreadPoolExecutor(6) as servers:
        counts = list(servers.map(serve, tables))

    assert started == [f"job-{number}" for number in range(30)]
    assert sum(counts) == 30
    for each in tables:
        each.close()


@SHARED
def test_many_servers_keep_the_limit_and_the_request_ids(location: DatabaseLocation) -> None:
    """Concurrent submissions from many servers respect the queue limit and create one job per request id."""
    tables = [JobTable(location, owner=f"server-{number}") for number in range(6)]

    def add(number: int) -> str:
        try:
            return tables[number % 6].add(job(number, request_id=f"r{number // 2}"), "digest", limit=5)[0].id
        except OverloadedError:
            return ""

    with ThreadPoolExecutor(6) as servers:  # A table belongs to one thread: as many at a time as there are tables.
        actual = [made for start in range(0, 24, 6) for made in servers.map(add, range(start, start + 6))]

    assert tables[0].count_queued() == 5
    assert len(set(actual) - {""}) == 5
    assert actual[::2] == actual[1::2]
    for each in tables:
        each.close()


@BOTH
def test_a_start_that_was_not_heard_of_is_told_again(location: DatabaseLocation) -> None:
    """A server that asks for a job while it already runs one gets that job again, because the earlier reply was lost."""
    table = JobTable(location)
    table.add(first(), "digest", limit=9)
    started, _ = table.start_next()
    assert started is not None

    again = table.start_next()

    assert again == (started, ())
    table.close()


@SHARED
def test_a_job_is_abandoned_when_its_server_has_not_beaten_for_long(
    location: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job belongs to its server as long as the lease lasts; then it is abandoned."""
    left, right = JobTable(location, "one"), JobTable(location, "other")
    left.add(first(), "digest", limit=9)
    left.start_next()

    assert (left.abandoned(), right.abandoned()) == ([], [])
    monkeypatch.setattr(table, "LEASE_SECONDS", 0.0)
    assert [view.id for view in right.abandoned()] == ["job-1"]
    assert left.abandoned() == []
    monkeypatch.setattr(table, "LEASE_SECONDS", 30.0)
    assert right.abandoned() == []
    left.close()
    assert [view.id for view in right.abandoned()] == ["job-1"]
    right.close()


@SHARED
def test_a_job_is_cancelled_from_any_server(location: DatabaseLocation) -> None:
    """A job that another server cancels is marked for the server that runs it, and for no other."""
    left, right = JobTable(location, "one"), JobTable(location, "other")
    left.add(first(), "digest", limit=9)
    left.start_next()

    view, records = right.cancel("job-1", "No.")

    assert (view.state, records) == (JobState.RUNNING, ())
    assert (left.cancel_requested(), right.cancel_requested()) == (["job-1"], [])
    left.append_event("job-1", StateEntered(state=JobState.CANCELLED, reason="No."))
    assert left.cancel_requested() == []
    left.close()
    right.close()

"""Jobs and their events in SQLite."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path

import msgspec
from msgspec.structs import replace

from twofold_server.errors import ConflictError, OverloadedError, UnknownNameError, WrongStateError
from twofold_server.jobs import JobState, JobView, Record, Said, StateEntered, fold, record

VERSION = 1
"""Version of the schema. A newer one is refused."""

_SCHEMA = """
CREATE TABLE jobs (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,  -- The order of creation.
    id         TEXT NOT NULL UNIQUE,
    request_id TEXT UNIQUE,                        -- NULL if the caller gave none.
    digest     TEXT NOT NULL,                      -- Over the whole request.
    state      TEXT NOT NULL,
    view       BLOB NOT NULL                       -- JSON: the fold of the job's events.
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE TABLE events (
    job      INTEGER NOT NULL REFERENCES jobs,
    sequence INTEGER NOT NULL,
    time     TEXT NOT NULL,
    phase    TEXT NOT NULL,
    said     BLOB NOT NULL,                        -- JSON.
    PRIMARY KEY (job, sequence)
) WITHOUT ROWID;
"""
_PAGE_OF_EVENTS = 500
_RETRY_SECONDS = 60.0

Written = tuple[JobView, tuple[Record, ...]]
"""A job as it is now, and the records that made it so."""

_said: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)
_view = msgspec.json.Decoder(JobView)


class JobTable:
    """Hold all jobs ever made. An event and the view that it changes are written in one durable transaction.

    Every method blocks; all calls come from one thread.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        [version] = self._connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            self._connection.close()
            raise WrongStateError(
                f"{path.name}: schema {version} is newer than {VERSION}, the newest known here; upgrade"
            )
        if version == 0:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # -- writing ------------------------------------------------------------------------------------------------

    def add(self, view: JobView, digest: str, *, limit: int) -> JobView:
        """Queue a job, or return the earlier one of the same request.

        Raises ConflictError if its request_id came with another request, OverloadedError if *limit* jobs wait.
        """
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            if earlier := self.find(view.order.request_id, digest):
                return earlier
            self.check_room(limit)
            request_id = view.order.request_id or None
            row = (view.id, request_id, digest, view.state, msgspec.json.encode(view))
            self._connection.execute(
                "INSERT INTO jobs (id, request_id, digest, state, view) VALUES (?, ?, ?, ?, ?)", row
            )
            said = StateEntered(state=JobState.QUEUED, reason="The job waits for its turn.")
            self._write(view, said, view.created)
            return self.get(view.id)

    def say(self, job_id: str, said: Said, now: dt.datetime) -> Written:
        """Add an event to a job. Raises WrongStateError if it is over."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            view = self.get(job_id)
            if view.state.is_over:
                raise WrongStateError(f"job {job_id!r} is already over: {view.state}")
            return self._write(view, said, now)

    def start_next(self, now: dt.datetime) -> Written | None:
        """Let the oldest job that waits be running, and return it."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            waiting = self._views("WHERE state = ? ORDER BY number LIMIT 1", JobState.QUEUED)
            if not waiting:
                return None
            said = StateEntered(state=JobState.RUNNING, reason="The job has a trainer.")
            return self._write(waiting[0], said, now)

    def cancel_waiting(self, job_id: str, said: StateEntered, now: dt.datetime) -> Written:
        """End the job if it waits, and return it as it is now. Raises WrongStateError if it is over already."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            view = self.get(job_id)
            if view.state.is_over:
                raise WrongStateError(f"job {job_id!r} is already over: {view.state}")
            return self._write(view, said, now) if view.state is JobState.QUEUED else (view, ())

    def _write(self, view: JobView, said: Said, now: dt.datetime) -> Written:
        records = record(view, said, now)
        view = fold(replace(view, queue_position=0), records)
        change = (view.state, msgspec.json.encode(view), view.id)
        self._connection.execute("UPDATE jobs SET state = ?, view = ? WHERE id = ?", change)
        [number] = self._connection.execute("SELECT number FROM jobs WHERE id = ?", (view.id,)).fetchone()
        rows = [
            (number, one.sequence, one.time.isoformat(), one.phase, msgspec.json.encode(one.said)) for one in records
        ]
        self._connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
        return view, records

    # -- reading ------------------------------------------------------------------------------------------------

    def find(self, request_id: str, digest: str) -> JobView | None:
        """Return the job of a request_id. Raises ConflictError if it came with another request."""
        if not request_id:
            return None
        row = self._connection.execute("SELECT id, digest FROM jobs WHERE request_id = ?", (request_id,)).fetchone()
        if row is None:
            return None
        if row[1] != digest:
            raise ConflictError(
                f"request_id {request_id!r} was used for job {row[0]!r} with another request; write a new request_id"
            )
        return self.get(row[0])

    def check_room(self, limit: int) -> None:
        """Raise OverloadedError if *limit* jobs wait already."""
        if self.count_waiting() >= limit:
            raise OverloadedError(f"{limit} jobs wait already; come back when one is done", retry_after=_RETRY_SECONDS)

    def get(self, job_id: str) -> JobView:
        """Return one job. Raises UnknownNameError."""
        found = self._views("WHERE id = ?", job_id)
        if not found:
            raise UnknownNameError(f"there is no job {job_id[:100]!r}")
        return found[0]

    def page(self, size: int, before: int | None) -> tuple[list[JobView], int | None]:
        """Return jobs, newest first, that were made before the job of that number, and the number for the next page."""
        rows = self._connection.execute(
            "SELECT number, id FROM jobs WHERE ? IS NULL OR number < ? ORDER BY number DESC LIMIT ?",
            (before, before, size + 1),
        ).fetchall()
        more = len(rows) > size
        return [self.get(row[1]) for row in rows[:size]], rows[size - 1][0] if more else None

    def running(self) -> list[JobView]:
        """Return the jobs that run, or that ran when their server died."""
        return self._views("WHERE state = ? ORDER BY number", JobState.RUNNING)

    def unfinished(self) -> list[JobView]:
        """Return the jobs that wait or run."""
        return self._views("WHERE state IN (?, ?) ORDER BY number", JobState.QUEUED, JobState.RUNNING)

    def count_waiting(self) -> int:
        """Count the jobs that wait."""
        [count] = self._connection.execute("SELECT count(*) FROM jobs WHERE state = ?", (JobState.QUEUED,)).fetchone()
        return int(count)

    def read(self, job_id: str, after: int) -> tuple[list[Record], bool]:
        """Return the next events after a sequence number, and whether there will be none after these."""
        view = self.get(job_id)
        rows = self._connection.execute(
            "SELECT sequence, time, phase, said FROM events JOIN jobs ON job = number"
            " WHERE id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (job_id, after, _PAGE_OF_EVENTS),
        )
        records = [
            Record(sequence=sequence, time=dt.datetime.fromisoformat(time), phase=phase, said=_said.decode(said))
            for sequence, time, phase, said in rows
        ]
        seen = records[-1].sequence if records else after
        return records, view.state.is_over and seen >= view.last_sequence

    def _views(self, where: str, *values: str) -> list[JobView]:
        position = "(SELECT count(*) FROM jobs AS other WHERE other.state = 'queued' AND other.number < jobs.number)"
        rows = self._connection.execute(f"SELECT view, {position} FROM jobs {where}", values)  # noqa: S608 -- no input in it.
        found = [(_view.decode(view), int(before)) for view, before in rows]
        return [
            replace(view, queue_position=before) if view.state is JobState.QUEUED else view for view, before in found
        ]

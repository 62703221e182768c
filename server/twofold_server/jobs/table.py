"""The database table of jobs and their events."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from contextlib import suppress

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, insert, not_, or_, select, update

from twofold_server.errors import DatabaseError, FailedPreconditionError
from twofold_server.jobs.model import EventRecord, JobEvent, JobState, JobView, StateEntered
from twofold_server.jobs.rows import (
    POSITION,
    WriteResult,
    cancel_instead_of_requeue,
    check_room,
    count_waiting,
    find,
    get,
    get_unfinished,
    views,
    with_queue_position,
    write,
)
from twofold_server.storage.database import Database, DatabaseLocation
from twofold_server.storage.schema import EVENTS, JOBS, SERVERS

LEASE_SECONDS = 30.0
"""A server without a heartbeat for this long counts as dead. Heartbeats are far more frequent."""

_PAGE_OF_EVENTS = 500

_event_decoder: msgspec.json.Decoder[JobEvent] = msgspec.json.Decoder(JobEvent)


class JobTable:
    """All jobs and their events. An event and the view that it changes are written in one durable transaction.

    Every method blocks; all calls come from one thread. Several servers may share a table in PostgreSQL;
    *owner* is the name of this server. All methods raise DatabaseError.
    """

    def __init__(self, location: DatabaseLocation, owner: str = "") -> None:
        self.owner = owner or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.database = Database(location)
        self.is_shared = self.database.is_shared
        with self.database.writing() as connection:
            if not self.is_shared:  # The file has one owner, so earlier servers are dead.
                connection.execute(delete(SERVERS))
            self._beat(connection)

    def close(self) -> None:
        """Deregister this server and close the database."""
        with suppress(DatabaseError), self.database.writing() as connection:  # On failure the lease expires.
            connection.execute(delete(SERVERS).where(SERVERS.c.id == self.owner))
        self.database.close()

    # -- writing ------------------------------------------------------------------------------------------------

    def add(self, view: JobView, digest: str, *, limit: int) -> JobView:
        """Queue a job, or return the earlier job of the same request.

        Raises ConflictError if the request_id was used with a different request, OverloadedError if *limit* jobs are queued.
        """
        with self.database.writing() as connection:
            if earlier := find(connection, view.order.request_id, digest):
                return earlier
            check_room(connection, limit)
            row = {
                "id": view.id,
                "request_id": view.order.request_id or None,
                "digest": digest,
                "state": view.state.value,
                "view": msgspec.json.encode(view),
            }
            connection.execute(insert(JOBS), row)
            event = StateEntered(state=JobState.QUEUED, reason="The job waits for its turn.")
            write(connection, view, event, view.created)
            return get(connection, view.id)

    def say(self, job_id: str, event: JobEvent, now: dt.datetime) -> WriteResult:
        """Append an event to a job. Raises FailedPreconditionError if the job is over or owned by another server."""
        with self.database.writing() as connection:
            view = get_unfinished(connection, job_id)
            owner = connection.execute(select(JOBS.c.owner).where(JOBS.c.id == job_id)).scalar_one()
            if owner not in (None, self.owner):
                raise FailedPreconditionError(f"job {job_id!r} is run by another server by now")
            return write(connection, view, cancel_instead_of_requeue(connection, job_id, event), now)

    def take_over(self, job_id: str, event: StateEntered, now: dt.datetime) -> WriteResult | None:
        """Take ownership of a job whose server died, and append an event; None if the job is no longer abandoned."""
        with self.database.writing() as connection:
            jobs = views(connection, (JOBS.c.id == job_id) & self._abandoned)
            if not jobs:
                return None
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(owner=self.owner))
            return write(connection, jobs[0], cancel_instead_of_requeue(connection, job_id, event), now)

    def amend(self, job_id: str, event: JobEvent, now: dt.datetime) -> WriteResult:
        """Append an event to a job even if the job is over. Raises UnknownNameError."""
        with self.database.writing() as connection:
            return write(connection, get(connection, job_id), event, now)

    def start_next(self, now: dt.datetime) -> WriteResult | None:
        """Start the oldest queued job on this server and return it; None if none is queued or another server runs one.

        Write transactions are serialised, so two servers never start the same job. A job that this server already runs is
        returned again: the reply to an earlier call was lost.
        """
        with self.database.writing() as connection:
            for view in views(connection, JOBS.c.state == JobState.RUNNING):
                return (view, ()) if self._owns(connection, view.id) else None
            waiting = views(connection, JOBS.c.state == JobState.QUEUED)
            if not waiting:
                return None
            event = StateEntered(state=JobState.RUNNING, reason="The job has a trainer.")
            connection.execute(update(JOBS).where(JOBS.c.id == waiting[0].id).values(owner=self.owner))
            return write(connection, waiting[0], event, now)

    def cancel(self, job_id: str, event: StateEntered, now: dt.datetime) -> WriteResult:
        """Cancel a queued job, or mark a running job for cancellation, and return the job.

        Raises FailedPreconditionError if the job is already over.
        """
        with self.database.writing() as connection:
            view = get_unfinished(connection, job_id)
            if view.state is JobState.QUEUED:
                return write(connection, view, event, now)
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(unwanted=True))
            return view, ()

    def forget(self, job_id: str) -> None:
        """Delete a job and its events. Raises UnknownNameError, or FailedPreconditionError if the job is not over."""
        with self.database.writing() as connection:
            view = get(connection, job_id)
            if not view.state.is_over:
                raise FailedPreconditionError(f"job {job_id!r} is {view.state}; it can be removed when it is over")
            number = select(JOBS.c.number).where(JOBS.c.id == job_id).scalar_subquery()
            connection.execute(delete(EVENTS).where(EVENTS.c.job == number))
            connection.execute(delete(JOBS).where(JOBS.c.id == job_id))

    def beat(self) -> None:
        """Renew the lease of this server."""
        with self.database.writing() as connection:
            self._beat(connection)

    def _beat(self, connection: Connection) -> None:
        mine = SERVERS.c.id == self.owner
        if not connection.execute(update(SERVERS).where(mine).values(seen=self.database.clock)).rowcount:
            connection.execute(insert(SERVERS).values(id=self.owner, seen=self.database.clock))
        long_gone = self.database.clock - 10 * LEASE_SECONDS
        connection.execute(delete(SERVERS).where(SERVERS.c.seen < long_gone))

    def _owns(self, connection: Connection, job_id: str) -> bool:
        return bool(connection.execute(select(JOBS.c.owner == self.owner).where(JOBS.c.id == job_id)).scalar_one())

    # -- reading ------------------------------------------------------------------------------------------------

    def find(self, request_id: str, digest: str) -> JobView | None:
        """Return the job of a request_id, or None. Raises ConflictError if the id was used with a different request."""
        with self.database.reading() as connection:
            return find(connection, request_id, digest)

    def check_room(self, limit: int) -> None:
        """Raise OverloadedError if *limit* jobs are queued."""
        with self.database.reading() as connection:
            check_room(connection, limit)

    def get(self, job_id: str) -> JobView:
        """Return a job. Raises UnknownNameError."""
        with self.database.reading() as connection:
            return get(connection, job_id)

    def page(self, size: int, before: int | None) -> tuple[list[JobView], int | None]:
        """Return up to *size* jobs created before job number *before*, newest first, and the next page's *before*."""
        query = select(JOBS.c.number, JOBS.c.view, POSITION).order_by(JOBS.c.number.desc()).limit(size + 1)
        if before is not None:
            query = query.where(JOBS.c.number < before)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        more = len(rows) > size
        return [with_queue_position(view, position) for _, view, position in rows[:size]], rows[
            size - 1
        ].number if more else None

    def abandoned(self) -> list[JobView]:
        """Return the running jobs whose server died."""
        with self.database.reading() as connection:
            return views(connection, self._abandoned)

    @property
    def _abandoned(self) -> ColumnElement[bool]:
        living = select(SERVERS.c.id).where(SERVERS.c.seen > self.database.clock - LEASE_SECONDS)
        orphaned = or_(JOBS.c.owner.is_(None), not_(JOBS.c.owner.in_(living)) & (JOBS.c.owner != self.owner))
        return (JOBS.c.state == JobState.RUNNING) & orphaned

    def unwanted(self) -> list[str]:
        """Return the ids of this server's running jobs that were cancelled."""
        mine = (JOBS.c.state == JobState.RUNNING) & (JOBS.c.owner == self.owner) & JOBS.c.unwanted
        with self.database.reading() as connection:
            return list(connection.execute(select(JOBS.c.id).where(mine)).scalars())

    def unfinished(self) -> list[JobView]:
        """Return the queued and running jobs."""
        with self.database.reading() as connection:
            return views(connection, JOBS.c.state.in_((JobState.QUEUED, JobState.RUNNING)))

    def over(self) -> list[JobView]:
        """Return the jobs that are over."""
        with self.database.reading() as connection:
            return views(connection, JOBS.c.state.not_in((JobState.QUEUED, JobState.RUNNING)))

    def count_waiting(self) -> int:
        """Count the queued jobs."""
        with self.database.reading() as connection:
            return count_waiting(connection)

    def read(self, job_id: str, after: int) -> tuple[list[EventRecord], bool]:
        """Return the next records after a sequence number, and whether they are the job's last."""
        query = (
            select(EVENTS.c.sequence, EVENTS.c.time, EVENTS.c.phase, EVENTS.c["said"])
            .join(JOBS)
            .where(JOBS.c.id == job_id, EVENTS.c.sequence > after)
            .order_by(EVENTS.c.sequence)
            .limit(_PAGE_OF_EVENTS)
        )
        with self.database.reading() as connection:
            view = get(connection, job_id)
            rows = connection.execute(query).all()
        records = [
            EventRecord(
                sequence=sequence, time=dt.datetime.fromisoformat(time), phase=phase, event=_event_decoder.decode(event)
            )
            for sequence, time, phase, event in rows
        ]
        seen = records[-1].sequence if records else after
        return records, view.state.is_over and seen >= view.last_sequence

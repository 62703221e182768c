"""The database table of jobs and their events."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, delete, func, insert, not_, or_, select, update

from twofold_server.errors import (
    ConflictError,
    DatabaseError,
    FailedPreconditionError,
    OverloadedError,
    UnknownNameError,
)
from twofold_server.jobs.model import CANCELLED, EventRecord, Job, JobEvent, JobState, StateEntered, record, replay
from twofold_server.storage.database import Database, DatabaseLocation
from twofold_server.storage.schema import EVENTS, JOBS, SERVERS

LEASE_SECONDS = 30.0
"""A server without a heartbeat for this long counts as dead. Heartbeats are far more frequent."""

_EVENTS_PER_READ = 500
_RETRY_SECONDS = 60.0

J = TypeVar("J", bound="Job | None")
WriteResult = tuple[J, tuple[EventRecord, ...]]
"""The job after a write, and the records written."""

_earlier = JOBS.alias("earlier")
_QUEUE_POSITION = (
    select(func.count())
    .where(_earlier.c.state == JobState.QUEUED, _earlier.c.number < JOBS.c.number)
    .correlate(JOBS)
    .scalar_subquery()
)
_UNFINISHED = JOBS.c.state.in_((JobState.QUEUED, JobState.RUNNING))

_job_decoder = msgspec.json.Decoder(Job)
_event_decoder: msgspec.json.Decoder[JobEvent] = msgspec.json.Decoder(JobEvent)


class JobTable:
    """All jobs and their events. An event and the job that it changes are written in one durable transaction.

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
            self._renew_lease(connection)

    def close(self) -> None:
        """Deregister this server and close the database."""
        with suppress(DatabaseError), self.database.writing() as connection:  # On failure the lease expires.
            connection.execute(delete(SERVERS).where(SERVERS.c.id == self.owner))
        self.database.close()

    def add(self, job: Job, digest: str, *, limit: int) -> WriteResult[Job]:
        """Queue a job, or return the earlier job of the same request.

        Raises ConflictError if the request_id was used with a different request, OverloadedError if *limit* jobs are queued.
        """
        with self.database.writing() as connection:
            if earlier := self.find(job.spec.request_id, digest):
                return earlier, ()
            self.check_queue_limit(limit)
            row = {
                "id": job.id,
                "request_id": job.spec.request_id or None,
                "request_digest": digest,
                "state": job.state.value,
                "job": msgspec.json.encode(job),
            }
            connection.execute(insert(JOBS), row)
            _, records = _write(connection, job, StateEntered(state=JobState.QUEUED, reason="The job is queued."))
            return self.get(job.id), records

    def append_event(self, job_id: str, event: JobEvent) -> WriteResult[Job]:
        """Append an event to a job. Raises FailedPreconditionError if the job is over or owned by another server."""
        with self.database.writing() as connection:
            job = self._get_unfinished(job_id)
            if self._owner_of(connection, job_id) not in (None, self.owner):
                raise FailedPreconditionError(f"job {job_id!r} is now run by another server")
            return _write(connection, job, event)

    def append_event_after_end(self, job_id: str, event: JobEvent) -> WriteResult[Job]:
        """Append an event to a job even if the job is over. Raises UnknownNameError."""
        with self.database.writing() as connection:
            return _write(connection, self.get(job_id), event)

    def take_over(self, job_id: str, event: StateEntered) -> WriteResult[Job | None]:
        """Take ownership of a job whose server died, and append an event; None if the job is no longer abandoned."""
        with self.database.writing() as connection:
            jobs = self._select((JOBS.c.id == job_id) & self._abandoned)
            if not jobs:
                return None, ()
            self._own(connection, job_id)
            return _write(connection, jobs[0], event)

    def start_next(self) -> WriteResult[Job | None]:
        """Start the oldest queued job on this server and return it; None if none is queued or another server runs one.

        Write transactions are serialised, so two servers never start the same job. A job that this server already runs is
        returned again: the reply to an earlier call was lost.
        """
        with self.database.writing() as connection:
            for running in self._select(JOBS.c.state == JobState.RUNNING):
                return (running if self._owner_of(connection, running.id) == self.owner else None), ()
            queued = self._select(JOBS.c.state == JobState.QUEUED)
            if not queued:
                return None, ()
            self._own(connection, queued[0].id)
            return _write(connection, queued[0], StateEntered(state=JobState.RUNNING, reason="The job has a trainer."))

    def cancel(self, job_id: str, reason: str) -> WriteResult[Job]:
        """Cancel a queued job, or mark a running job for cancellation.

        Raises FailedPreconditionError if the job is already over.
        """
        with self.database.writing() as connection:
            job = self._get_unfinished(job_id)
            if job.state is JobState.QUEUED:
                return _write(connection, job, StateEntered(state=JobState.CANCELLED, reason=reason))
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(cancel_requested=True))
            return job, ()

    def delete(self, job_id: str) -> WriteResult[Job]:
        """Delete a job and its events. Raises UnknownNameError, or FailedPreconditionError if the job is not over."""
        with self.database.writing() as connection:
            job = self.get(job_id)
            if not job.state.is_over:
                raise FailedPreconditionError(f"job {job_id!r} is {job.state}; only a job that is over can be deleted")
            number = connection.scalar(select(JOBS.c.number).where(JOBS.c.id == job_id))
            connection.execute(delete(EVENTS).where(EVENTS.c.job_number == number))
            connection.execute(delete(JOBS).where(JOBS.c.id == job_id))
            return job, ()

    def renew_lease(self) -> None:
        """Renew the lease of this server."""
        with self.database.writing() as connection:
            self._renew_lease(connection)

    def _renew_lease(self, connection: Connection) -> None:
        mine = SERVERS.c.id == self.owner
        if not connection.execute(update(SERVERS).where(mine).values(renewed_at=self.database.clock)).rowcount:
            connection.execute(insert(SERVERS).values(id=self.owner, renewed_at=self.database.clock))
        expired = self.database.clock - 10 * LEASE_SECONDS
        connection.execute(delete(SERVERS).where(SERVERS.c.renewed_at < expired))

    def _own(self, connection: Connection, job_id: str) -> None:
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(owner=self.owner))

    def _owner_of(self, connection: Connection, job_id: str) -> str | None:
        owner: str | None = connection.scalar(select(JOBS.c.owner).where(JOBS.c.id == job_id))
        return owner

    def get(self, job_id: str) -> Job:
        """Return a job. Raises UnknownNameError."""
        # PostgreSQL text cannot store every character (NUL, for one); job ids are always printable.
        jobs = self._select(JOBS.c.id == job_id) if job_id.isprintable() else []
        if not jobs:
            raise UnknownNameError(f"there is no job {job_id[:100]!r}")
        return jobs[0]

    def _get_unfinished(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job.state.is_over:
            raise FailedPreconditionError(f"job {job_id!r} is already over: {job.state}")
        return job

    def find(self, request_id: str, digest: str) -> Job | None:
        """Return the job of a request_id, or None. Raises ConflictError if the id was used with a different request."""
        if not request_id:
            return None
        query = select(JOBS.c.id, JOBS.c.request_digest).where(JOBS.c.request_id == request_id)
        with self.database.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.request_digest != digest:
            raise ConflictError(
                f"request_id {request_id!r} was used for job {row.id!r} with a different request; use a new request_id"
            )
        return self.get(row.id)

    def page(self, size: int, before: int | None) -> tuple[list[Job], int | None]:
        """Return up to *size* jobs created before job number *before*, newest first, and the next page's *before*."""
        query = select(JOBS.c.number, JOBS.c.job, _QUEUE_POSITION).order_by(JOBS.c.number.desc()).limit(size + 1)
        if before is not None:
            query = query.where(JOBS.c.number < before)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        jobs = [_decode(job, position) for _, job, position in rows[:size]]
        return jobs, rows[size - 1].number if len(rows) > size else None

    def unfinished(self) -> list[Job]:
        """Return the queued and running jobs."""
        return self._select(_UNFINISHED)

    def finished(self) -> list[Job]:
        """Return the jobs that are over."""
        return self._select(not_(_UNFINISHED))

    def abandoned(self) -> list[Job]:
        """Return the running jobs whose server died."""
        return self._select(self._abandoned)

    def _select(self, where: ColumnElement[bool]) -> list[Job]:
        query = select(JOBS.c.job, _QUEUE_POSITION).where(where).order_by(JOBS.c.number)
        with self.database.reading() as connection:
            return [_decode(job, position) for job, position in connection.execute(query)]

    @property
    def _abandoned(self) -> ColumnElement[bool]:
        living = select(SERVERS.c.id).where(SERVERS.c.renewed_at > self.database.clock - LEASE_SECONDS)
        orphaned = or_(JOBS.c.owner.is_(None), not_(JOBS.c.owner.in_(living)) & (JOBS.c.owner != self.owner))
        return (JOBS.c.state == JobState.RUNNING) & orphaned

    def cancel_requested(self) -> list[str]:
        """Return the ids of this server's running jobs that are marked for cancellation."""
        mine = (JOBS.c.state == JobState.RUNNING) & (JOBS.c.owner == self.owner) & JOBS.c.cancel_requested
        with self.database.reading() as connection:
            return list(connection.execute(select(JOBS.c.id).where(mine)).scalars())

    def check_queue_limit(self, limit: int) -> None:
        """Raise OverloadedError if *limit* jobs are queued."""
        if self.count_queued() >= limit:
            raise OverloadedError(
                f"{limit} jobs are already queued; retry when one has ended", retry_after=_RETRY_SECONDS
            )

    def count_queued(self) -> int:
        """Count the queued jobs."""
        with self.database.reading() as connection:
            return connection.execute(select(func.count()).where(JOBS.c.state == JobState.QUEUED)).scalar_one()

    def read_events(self, job_id: str, after: int) -> tuple[list[EventRecord], bool]:
        """Return the next records after a sequence number, and whether they are the job's last."""
        query = (
            select(EVENTS.c.sequence, EVENTS.c.time, EVENTS.c.phase, EVENTS.c.event)
            .join(JOBS)
            .where(JOBS.c.id == job_id, EVENTS.c.sequence > after)
            .order_by(EVENTS.c.sequence)
            .limit(_EVENTS_PER_READ)
        )
        with self.database.reading() as connection:
            job = self.get(job_id)
            rows = connection.execute(query).all()
        records = [
            EventRecord(
                sequence=sequence, time=dt.datetime.fromisoformat(time), phase=phase, event=_event_decoder.decode(event)
            )
            for sequence, time, phase, event in rows
        ]
        last = records[-1].sequence if records else after
        return records, job.state.is_over and last >= job.last_sequence


def _write(connection: Connection, job: Job, event: JobEvent) -> WriteResult[Job]:
    """Write an event and its effect on the job. A job that was cancelled while it ran ends instead of being requeued."""
    query = select(JOBS.c.number, JOBS.c.cancel_requested).where(JOBS.c.id == job.id)
    [(number, cancel_requested)] = connection.execute(query)
    if cancel_requested and isinstance(event, StateEntered) and event.state is JobState.QUEUED:
        event = CANCELLED
    records = record(job, event, dt.datetime.now(dt.UTC))
    job = replay(replace(job, queue_position=0), records)
    connection.execute(
        update(JOBS).where(JOBS.c.number == number).values(state=job.state.value, job=msgspec.json.encode(job))
    )
    rows = [
        {
            "job_number": number,
            "sequence": entry.sequence,
            "time": entry.time.isoformat(),
            "phase": entry.phase,
            "event": msgspec.json.encode(entry.event),
        }
        for entry in records
    ]
    connection.execute(insert(EVENTS), rows)
    return job, records


def _decode(stored: bytes, position: int) -> Job:
    job = _job_decoder.decode(stored)
    return replace(job, queue_position=position) if job.state is JobState.QUEUED else job

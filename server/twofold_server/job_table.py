"""Jobs and their events in a database."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
from contextlib import suppress

import msgspec
from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, delete, func, insert, not_, or_, select, update

from twofold_server.database import Database, Place
from twofold_server.errors import ConflictError, DatabaseError, OverloadedError, UnknownNameError, WrongStateError
from twofold_server.jobs import JobState, JobView, Record, Said, StateEntered, fold, record
from twofold_server.tables import EVENTS, JOBS, SERVERS

LEASE_SECONDS = 30.0
"""How long a server that does not beat is taken to be alive. It beats far more often."""

_PAGE_OF_EVENTS = 500
_RETRY_SECONDS = 60.0

Written = tuple[JobView, tuple[Record, ...]]
"""A job as it is now, and the records that made it so."""

_said: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)
_view = msgspec.json.Decoder(JobView)
_earlier = JOBS.alias("earlier")
_position = (
    select(func.count())
    .where(_earlier.c.state == JobState.QUEUED, _earlier.c.number < JOBS.c.number)
    .correlate(JOBS)
    .scalar_subquery()
)


class JobTable:
    """Hold all jobs ever made. An event and the view that it changes are written in one durable transaction.

    Every method blocks; all calls come from one thread. Several servers may have one table if it is in PostgreSQL:
    *owner* is the name of this one among them. All raise DatabaseError.
    """

    def __init__(self, place: Place, owner: str = "") -> None:
        self.owner = owner or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.database = Database(place)
        self.is_shared = self.database.is_shared
        with self.database.writing() as connection:
            if not self.is_shared:  # Who has the file has it alone: those that had it are dead.
                connection.execute(delete(SERVERS))
            self._beat(connection)

    def close(self) -> None:
        """Say that this server is gone, and close the database."""
        with suppress(DatabaseError), self.database.writing() as connection:  # Without it, its lease runs out.
            connection.execute(delete(SERVERS).where(SERVERS.c.id == self.owner))
        self.database.close()

    # -- writing ------------------------------------------------------------------------------------------------

    def add(self, view: JobView, digest: str, *, limit: int) -> JobView:
        """Queue a job, or return the earlier one of the same request.

        Raises ConflictError if its request_id came with another request, OverloadedError if *limit* jobs wait.
        """
        with self.database.writing() as connection:
            if earlier := _find(connection, view.order.request_id, digest):
                return earlier
            _check_room(connection, limit)
            row = {
                "id": view.id,
                "request_id": view.order.request_id or None,
                "digest": digest,
                "state": view.state.value,
                "view": msgspec.json.encode(view),
            }
            connection.execute(insert(JOBS), row)
            said = StateEntered(state=JobState.QUEUED, reason="The job waits for its turn.")
            _write(connection, view, said, view.created)
            return _get(connection, view.id)

    def say(self, job_id: str, said: Said, now: dt.datetime) -> Written:
        """Add an event to a job. Raises WrongStateError if it is over."""
        with self.database.writing() as connection:
            return _write(connection, _get_unfinished(connection, job_id), said, now)

    def amend(self, job_id: str, said: Said, now: dt.datetime) -> Written:
        """Add an event to a job, also if it is over. Raises UnknownNameError."""
        with self.database.writing() as connection:
            return _write(connection, _get(connection, job_id), said, now)

    def start_next(self, now: dt.datetime) -> Written | None:
        """Let the oldest job that waits be running here, and return it, unless one runs already.

        Writers take turns, so no two servers get one job. One that runs here is one whose start this server did not
        hear of: it has asked for the next one.
        """
        with self.database.writing() as connection:
            for view in _views(connection, JOBS.c.state == JobState.RUNNING):
                return (view, ()) if self._owns(connection, view.id) else None
            waiting = _views(connection, JOBS.c.state == JobState.QUEUED)
            if not waiting:
                return None
            said = StateEntered(state=JobState.RUNNING, reason="The job has a trainer.")
            connection.execute(update(JOBS).where(JOBS.c.id == waiting[0].id).values(owner=self.owner))
            return _write(connection, waiting[0], said, now)

    def cancel(self, job_id: str, said: StateEntered, now: dt.datetime) -> Written:
        """End the job if it waits, mark it as unwanted if it runs, and return it as it is now.

        Raises WrongStateError if it is over already.
        """
        with self.database.writing() as connection:
            view = _get_unfinished(connection, job_id)
            if view.state is JobState.QUEUED:
                return _write(connection, view, said, now)
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(unwanted=True))
            return view, ()

    def forget(self, job_id: str) -> None:
        """Remove a job and its events. Raises UnknownNameError, or WrongStateError if it is not over."""
        with self.database.writing() as connection:
            view = _get(connection, job_id)
            if not view.state.is_over:
                raise WrongStateError(f"job {job_id!r} is {view.state}; it can be removed when it is over")
            number = select(JOBS.c.number).where(JOBS.c.id == job_id).scalar_subquery()
            connection.execute(delete(EVENTS).where(EVENTS.c.job == number))
            connection.execute(delete(JOBS).where(JOBS.c.id == job_id))

    def beat(self) -> None:
        """Say that this server is alive."""
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
        """Return the job of a request_id. Raises ConflictError if it came with another request."""
        with self.database.reading() as connection:
            return _find(connection, request_id, digest)

    def check_room(self, limit: int) -> None:
        """Raise OverloadedError if *limit* jobs wait already."""
        with self.database.reading() as connection:
            _check_room(connection, limit)

    def get(self, job_id: str) -> JobView:
        """Return one job. Raises UnknownNameError."""
        with self.database.reading() as connection:
            return _get(connection, job_id)

    def page(self, size: int, before: int | None) -> tuple[list[JobView], int | None]:
        """Return jobs, newest first, that were made before the job of that number, and the number for the next page."""
        query = select(JOBS.c.number, JOBS.c.view, _position).order_by(JOBS.c.number.desc()).limit(size + 1)
        if before is not None:
            query = query.where(JOBS.c.number < before)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        more = len(rows) > size
        return [_placed(view, position) for _, view, position in rows[:size]], rows[size - 1].number if more else None

    def abandoned(self) -> list[JobView]:
        """Return the jobs that ran when their server died."""
        living = select(SERVERS.c.id).where(SERVERS.c.seen > self.database.clock - LEASE_SECONDS)
        left = or_(JOBS.c.owner.is_(None), not_(JOBS.c.owner.in_(living)) & (JOBS.c.owner != self.owner))
        with self.database.reading() as connection:
            return _views(connection, (JOBS.c.state == JobState.RUNNING) & left)

    def unwanted(self) -> list[str]:
        """Return the ids of the jobs that run here and that somebody has cancelled."""
        mine = (JOBS.c.state == JobState.RUNNING) & (JOBS.c.owner == self.owner) & JOBS.c.unwanted
        with self.database.reading() as connection:
            return list(connection.execute(select(JOBS.c.id).where(mine)).scalars())

    def unfinished(self) -> list[JobView]:
        """Return the jobs that wait or run."""
        with self.database.reading() as connection:
            return _views(connection, JOBS.c.state.in_((JobState.QUEUED, JobState.RUNNING)))

    def over(self) -> list[JobView]:
        """Return the jobs that are over."""
        with self.database.reading() as connection:
            return _views(connection, JOBS.c.state.not_in((JobState.QUEUED, JobState.RUNNING)))

    def count_waiting(self) -> int:
        """Count the jobs that wait."""
        with self.database.reading() as connection:
            return _count_waiting(connection)

    def read(self, job_id: str, after: int) -> tuple[list[Record], bool]:
        """Return the next events after a sequence number, and whether there will be none after these."""
        query = (
            select(EVENTS.c.sequence, EVENTS.c.time, EVENTS.c.phase, EVENTS.c.said)
            .join(JOBS)
            .where(JOBS.c.id == job_id, EVENTS.c.sequence > after)
            .order_by(EVENTS.c.sequence)
            .limit(_PAGE_OF_EVENTS)
        )
        with self.database.reading() as connection:
            view = _get(connection, job_id)
            rows = connection.execute(query).all()
        records = [
            Record(sequence=sequence, time=dt.datetime.fromisoformat(time), phase=phase, said=_said.decode(said))
            for sequence, time, phase, said in rows
        ]
        seen = records[-1].sequence if records else after
        return records, view.state.is_over and seen >= view.last_sequence


def _write(connection: Connection, view: JobView, said: Said, now: dt.datetime) -> Written:
    records = record(view, said, now)
    view = fold(replace(view, queue_position=0), records)
    change = {"state": view.state.value, "view": msgspec.json.encode(view)}
    connection.execute(update(JOBS).where(JOBS.c.id == view.id).values(change))
    number = connection.execute(select(JOBS.c.number).where(JOBS.c.id == view.id)).scalar_one()
    rows = [
        {
            "job": number,
            "sequence": one.sequence,
            "time": one.time.isoformat(),
            "phase": one.phase,
            "said": msgspec.json.encode(one.said),
        }
        for one in records
    ]
    connection.execute(insert(EVENTS), rows)
    return view, records


def _find(connection: Connection, request_id: str, digest: str) -> JobView | None:
    if not request_id:
        return None
    row = connection.execute(select(JOBS.c.id, JOBS.c.digest).where(JOBS.c.request_id == request_id)).one_or_none()
    if row is None:
        return None
    if row.digest != digest:
        raise ConflictError(
            f"request_id {request_id!r} was used for job {row.id!r} with another request; write a new request_id"
        )
    return _get(connection, row.id)


def _check_room(connection: Connection, limit: int) -> None:
    if _count_waiting(connection) >= limit:
        raise OverloadedError(f"{limit} jobs wait already; come back when one is done", retry_after=_RETRY_SECONDS)


def _count_waiting(connection: Connection) -> int:
    return connection.execute(select(func.count()).where(JOBS.c.state == JobState.QUEUED)).scalar_one()


def _get(connection: Connection, job_id: str) -> JobView:
    # A text of PostgreSQL cannot hold every character, and no id of ours holds one of those.
    found = _views(connection, JOBS.c.id == job_id) if job_id.isprintable() else []
    if not found:
        raise UnknownNameError(f"there is no job {job_id[:100]!r}")
    return found[0]


def _get_unfinished(connection: Connection, job_id: str) -> JobView:
    view = _get(connection, job_id)
    if view.state.is_over:
        raise WrongStateError(f"job {job_id!r} is already over: {view.state}")
    return view


def _views(connection: Connection, where: ColumnElement[bool]) -> list[JobView]:
    query = select(JOBS.c.view, _position).where(where).order_by(JOBS.c.number)
    return [_placed(view, position) for view, position in connection.execute(query)]


def _placed(stored: bytes, position: int) -> JobView:
    view = _view.decode(stored)
    return replace(view, queue_position=position) if view.state is JobState.QUEUED else view

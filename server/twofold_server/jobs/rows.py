"""Conversion between job rows and views, and the queries that the job table shares."""

from __future__ import annotations

import datetime as dt

import msgspec
from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from twofold_server.errors import ConflictError, FailedPreconditionError, OverloadedError, UnknownNameError
from twofold_server.jobs.model import CANCELLED, EventRecord, JobEvent, JobState, JobView, StateEntered, fold, record
from twofold_server.storage.schema import EVENTS, JOBS

_RETRY_SECONDS = 60.0

WriteResult = tuple[JobView, tuple[EventRecord, ...]]
"""The updated job and the records written."""

_view = msgspec.json.Decoder(JobView)
_earlier = JOBS.alias("earlier")
POSITION = (
    select(func.count())
    .where(_earlier.c.state == JobState.QUEUED, _earlier.c.number < JOBS.c.number)
    .correlate(JOBS)
    .scalar_subquery()
)


def cancel_instead_of_requeue(connection: Connection, job_id: str, event: JobEvent) -> JobEvent:
    """Replace a requeue event with CANCELLED if the job was cancelled while it ran."""
    if isinstance(event, StateEntered) and event.state is JobState.QUEUED:
        unwanted = connection.execute(select(JOBS.c.unwanted).where(JOBS.c.id == job_id)).scalar_one()
        return CANCELLED if unwanted else event
    return event


def write(connection: Connection, view: JobView, event: JobEvent, now: dt.datetime) -> WriteResult:
    """Write an event and the resulting view of its job."""
    records = record(view, event, now)
    view = fold(replace(view, queue_position=0), records)
    change = {"state": view.state.value, "view": msgspec.json.encode(view)}
    connection.execute(update(JOBS).where(JOBS.c.id == view.id).values(change))
    number = connection.execute(select(JOBS.c.number).where(JOBS.c.id == view.id)).scalar_one()
    rows = [
        {
            "job": number,
            "sequence": entry.sequence,
            "time": entry.time.isoformat(),
            "phase": entry.phase,
            "said": msgspec.json.encode(entry.event),
        }
        for entry in records
    ]
    connection.execute(insert(EVENTS), rows)
    return view, records


def find(connection: Connection, request_id: str, digest: str) -> JobView | None:
    """Return the job of a request_id, or None. Raises ConflictError if the id was used with a different request."""
    if not request_id:
        return None
    row = connection.execute(select(JOBS.c.id, JOBS.c.digest).where(JOBS.c.request_id == request_id)).one_or_none()
    if row is None:
        return None
    if row.digest != digest:
        raise ConflictError(
            f"request_id {request_id!r} was used for job {row.id!r} with another request; write a new request_id"
        )
    return get(connection, row.id)


def check_room(connection: Connection, limit: int) -> None:
    """Raise OverloadedError if *limit* jobs are queued."""
    if count_waiting(connection) >= limit:
        raise OverloadedError(f"{limit} jobs wait already; come back when one is done", retry_after=_RETRY_SECONDS)


def count_waiting(connection: Connection) -> int:
    """Count the queued jobs."""
    return connection.execute(select(func.count()).where(JOBS.c.state == JobState.QUEUED)).scalar_one()


def get(connection: Connection, job_id: str) -> JobView:
    """Return a job. Raises UnknownNameError."""
    # PostgreSQL text cannot store every character (NUL, for one); job ids are always printable.
    jobs = views(connection, JOBS.c.id == job_id) if job_id.isprintable() else []
    if not jobs:
        raise UnknownNameError(f"there is no job {job_id[:100]!r}")
    return jobs[0]


def get_unfinished(connection: Connection, job_id: str) -> JobView:
    """Return a queued or running job. Raises UnknownNameError or FailedPreconditionError."""
    view = get(connection, job_id)
    if view.state.is_over:
        raise FailedPreconditionError(f"job {job_id!r} is already over: {view.state}")
    return view


def views(connection: Connection, where: ColumnElement[bool]) -> list[JobView]:
    """Return the jobs that match a condition, oldest first."""
    query = select(JOBS.c.view, POSITION).where(where).order_by(JOBS.c.number)
    return [with_queue_position(view, position) for view, position in connection.execute(query)]


def with_queue_position(stored: bytes, position: int) -> JobView:
    """Decode a view and set its queue position."""
    view = _view.decode(stored)
    return replace(view, queue_position=position) if view.state is JobState.QUEUED else view

"""Rows of jobs as views, and back: what the statements of the table have in common."""

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
"""A job as it is now, and the records that made it so."""

_view = msgspec.json.Decoder(JobView)
_earlier = JOBS.alias("earlier")
POSITION = (
    select(func.count())
    .where(_earlier.c.state == JobState.QUEUED, _earlier.c.number < JOBS.c.number)
    .correlate(JOBS)
    .scalar_subquery()
)


def cancel_instead_of_requeue(connection: Connection, job_id: str, event: JobEvent) -> JobEvent:
    """Let a job end that would wait once more, if it was cancelled while it ran."""
    if isinstance(event, StateEntered) and event.state is JobState.QUEUED:
        unwanted = connection.execute(select(JOBS.c.unwanted).where(JOBS.c.id == job_id)).scalar_one()
        return CANCELLED if unwanted else event
    return event


def write(connection: Connection, view: JobView, event: JobEvent, now: dt.datetime) -> WriteResult:
    """Write an event and the view that it makes of a job."""
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
    """Return the job of a request_id. Raises ConflictError if it came with another request."""
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
    """Raise OverloadedError if *limit* jobs wait already."""
    if count_waiting(connection) >= limit:
        raise OverloadedError(f"{limit} jobs wait already; come back when one is done", retry_after=_RETRY_SECONDS)


def count_waiting(connection: Connection) -> int:
    """Count the jobs that wait."""
    return connection.execute(select(func.count()).where(JOBS.c.state == JobState.QUEUED)).scalar_one()


def get(connection: Connection, job_id: str) -> JobView:
    """Return one job. Raises UnknownNameError."""
    # A text of PostgreSQL cannot hold every character, and no id of ours holds one of those.
    jobs = views(connection, JOBS.c.id == job_id) if job_id.isprintable() else []
    if not jobs:
        raise UnknownNameError(f"there is no job {job_id[:100]!r}")
    return jobs[0]


def get_unfinished(connection: Connection, job_id: str) -> JobView:
    """Return a job that is not over. Raises UnknownNameError or FailedPreconditionError."""
    view = get(connection, job_id)
    if view.state.is_over:
        raise FailedPreconditionError(f"job {job_id!r} is already over: {view.state}")
    return view


def views(connection: Connection, where: ColumnElement[bool]) -> list[JobView]:
    """Return the jobs of which something is true, oldest first."""
    query = select(JOBS.c.view, POSITION).where(where).order_by(JOBS.c.number)
    return [with_queue_position(view, position) for view, position in connection.execute(query)]


def with_queue_position(stored: bytes, position: int) -> JobView:
    """Read a view, with its place in the queue."""
    view = _view.decode(stored)
    return replace(view, queue_position=position) if view.state is JobState.QUEUED else view

"""Asynchronous access to jobs: runs table calls in one thread and notifies waiters of changes."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from twofold_checkpoint.store import Aliases, AliasUpdate

from twofold_server.errors import NotServingError, ServerError
from twofold_server.jobs.metrics import JobMetrics
from twofold_server.jobs.model import EventRecord, Job, StateEntered
from twofold_server.jobs.table import J, JobTable, WriteResult
from twofold_server.observability.metrics import Metrics
from twofold_server.storage.database import DatabaseLocation
from twofold_server.versions.alias_changes import AliasChange, Author
from twofold_server.versions.alias_table import AliasTable

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


def _read(
    query: Callable[Concatenate[JobTable, P], T],
) -> Callable[Concatenate[JobRepository, P], Coroutine[Any, Any, T]]:
    """Make a query of the table a method that runs it in the database thread."""

    @functools.wraps(query)
    async def read(self: JobRepository, /, *args: P.args, **kwargs: P.kwargs) -> T:
        bound: Callable[P, T] = getattr(self._table, query.__name__)
        return await self._run(bound, *args, **kwargs)

    return read


def _write(
    change: Callable[Concatenate[JobTable, P], WriteResult[J]],
) -> Callable[Concatenate[JobRepository, P], Coroutine[Any, Any, J]]:
    """Make a change of the table a method that also updates the metrics, calls on_end and wakes all waiters."""

    @functools.wraps(change)
    async def write(self: JobRepository, /, *args: P.args, **kwargs: P.kwargs) -> J:
        bound: Callable[P, WriteResult[J]] = getattr(self._table, change.__name__)
        job, records = await self._run(bound, *args, **kwargs)
        if job is not None:
            await self._publish(job, records)
        return job

    return write


class JobRepository:
    """Non-blocking reads and writes of jobs. Every read comes from the table, so callers see only durable state."""

    add = _write(JobTable.add)
    append_event = _write(JobTable.append_event)
    append_event_after_end = _write(JobTable.append_event_after_end)
    take_over = _write(JobTable.take_over)
    start_next = _write(JobTable.start_next)
    cancel = _write(JobTable.cancel)
    delete = _write(JobTable.delete)

    get = _read(JobTable.get)
    find = _read(JobTable.find)
    page = _read(JobTable.page)
    unfinished = _read(JobTable.unfinished)
    finished = _read(JobTable.finished)
    abandoned = _read(JobTable.abandoned)
    cancel_requested = _read(JobTable.cancel_requested)
    check_queue_limit = _read(JobTable.check_queue_limit)

    def __init__(
        self,
        location: DatabaseLocation,
        metrics: Metrics,
        *,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        self._location = location
        self._metrics = JobMetrics(metrics)
        self.change = asyncio.Event()
        """An event that is set at the next change. Take it, read, then wait for it."""
        self._on_end = on_end
        self.base_lock = asyncio.Lock()
        """Lock held from the check of a new job's base until its row is written, and while a checkpoint is deleted."""
        self._thread: ThreadPoolExecutor | None = None
        self._table: JobTable
        self._aliases: AliasTable

    async def open(self) -> None:
        """Open the table."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._table = await asyncio.get_running_loop().run_in_executor(thread, JobTable, self._location)
        self._aliases = AliasTable(self._table.database)
        self._thread = thread
        await self._update_queue_length()

    async def close(self) -> None:
        """Close the table. Watchers of unfinished jobs get NotServingError."""
        thread, self._thread = self._thread, None
        if thread:
            await asyncio.get_running_loop().run_in_executor(thread, self._table.close)
            thread.shutdown()
            self._notify()

    async def renew_lease(self) -> None:
        """Renew the lease of this server, and wake all waiters to read what other servers wrote."""
        await self._run(self._table.renew_lease)
        await self._update_queue_length()
        self._notify()

    async def record_alias_change(self, update: AliasUpdate, author: Author) -> None:
        """Record who changed aliases. A database error is logged; catch_up_aliases() records the change at the next start."""
        try:
            await self._run(self._aliases.write, update, author, dt.datetime.now(dt.UTC))
        except ServerError as error:
            log.error("alias change not recorded", extra={"actor": author.actor, "reason": str(error)})  # noqa: TRY400 -- not a bug.

    async def catch_up_aliases(self, aliases: Aliases) -> None:
        """Record alias changes that were missed while the database was unavailable."""
        await self._run(self._aliases.catch_up, aliases, dt.datetime.now(dt.UTC))

    async def alias_changes(self, size: int, before: int | None) -> tuple[list[AliasChange], int | None]:
        """Return up to *size* alias changes before number *before*, newest first, and the next page's *before*."""
        return await self._run(self._aliases.page, size, before)

    async def watch(self, job_id: str, after: int = 0) -> AsyncGenerator[EventRecord, None]:
        """Yield the records after a sequence number, past records first, and end after the job's last record.

        A slow watcher misses no record. Raises UnknownNameError, or NotServingError when the
        server stops before the job is over.
        """
        over = False
        while not over:
            change = self.change  # Taken before reading, so that no change in between is missed.
            records, over = await self._run(self._table.read_events, job_id, after)
            for record in records:
                yield record
                after = record.sequence
            if not records and not over:
                await change.wait()

    async def wait_until_over(self, job_id: str) -> Job:
        """Wait until the job is over, and return it."""
        while True:
            change = self.change
            job = await self.get(job_id)
            if job.state.is_over:
                return job
            await change.wait()

    @property
    def is_shared(self) -> bool:
        """Whether other servers may share the jobs."""
        return self._table.is_shared

    async def _publish(self, job: Job, records: tuple[EventRecord, ...]) -> None:
        self._metrics.observe(job, records)
        states = [record.event.state for record in records if isinstance(record.event, StateEntered)]
        if self._on_end and any(state.is_over for state in states):
            self._on_end(job)
        if states:
            await self._update_queue_length()
        self._notify()

    async def _update_queue_length(self) -> None:
        self._metrics.set_queued(await self._run(self._table.count_queued))

    def _notify(self) -> None:
        change, self.change = self.change, asyncio.Event()
        change.set()

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call in the database thread."""
        if self._thread is None:
            raise NotServingError("the server is stopping; retry when it has restarted")
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))

"""Asynchronous access to jobs: runs table calls in one thread and notifies waiters of changes."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from twofold_checkpoint.store import Aliases, AliasUpdate

from twofold_server.errors import NotServingError, ServerError
from twofold_server.jobs.metrics import JobMetrics
from twofold_server.jobs.model import EventRecord, JobEvent, JobState, JobView, StateEntered
from twofold_server.jobs.table import JobTable
from twofold_server.observability.metrics import Metrics
from twofold_server.storage.database import DatabaseLocation
from twofold_server.versions.alias_changes import AliasChange, Author
from twofold_server.versions.alias_table import AliasTable

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


class JobRepository:
    """Non-blocking reads and writes of jobs. Every read comes from the table, so callers see only durable state."""

    def __init__(
        self,
        location: DatabaseLocation,
        metrics: Metrics,
        *,
        on_end: Callable[[JobView], None] | None = None,
    ) -> None:
        self._location = location
        self._metrics = JobMetrics(metrics)
        self._changed = asyncio.Event()
        self._on_end = on_end
        self.bases = asyncio.Lock()
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
        await self._count()

    async def close(self) -> None:
        """Close the table. Watchers of unfinished jobs get NotServingError."""
        thread, self._thread = self._thread, None
        if thread:
            await asyncio.get_running_loop().run_in_executor(thread, self._table.close)
            thread.shutdown()
            self._announce()

    # -- writing ------------------------------------------------------------------------------------------------

    async def add(self, view: JobView, digest: str, *, limit: int) -> JobView:
        """Queue a job, or return the earlier job of the same request_id and request.

        Raises ConflictError or OverloadedError.
        """
        added = await self._run_in_db_thread(self._table.add, view, digest, limit=limit)
        await self._count()
        self._announce()
        return added

    async def say(self, job_id: str, event: JobEvent) -> JobView:
        """Append an event to a job. Raises FailedPreconditionError if the job is over or owned by another server."""
        view, records = await self._run_in_db_thread(self._table.say, job_id, event, _now())
        self._see(view, records)
        if isinstance(event, StateEntered):
            await self._count()
        self._announce()
        return view

    async def amend(self, job_id: str, event: JobEvent) -> None:
        """Append an event to a job even if the job is over. Raises UnknownNameError."""
        await self._run_in_db_thread(self._table.amend, job_id, event, _now())
        self._announce()

    async def take_over(self, job_id: str, event: StateEntered) -> JobView | None:
        """Take ownership of a job whose server died, and append an event; None if the job is no longer abandoned."""
        written = await self._run_in_db_thread(self._table.take_over, job_id, event, _now())
        if written is None:
            return None
        self._see(*written)
        await self._count()
        self._announce()
        return written[0]

    async def start_next(self) -> JobView | None:
        """Start the oldest queued job and return it; None if none can start."""
        started = await self._run_in_db_thread(self._table.start_next, _now())
        if started is None:
            return None
        self._see(*started)
        await self._count()
        self._announce()
        return started[0]

    async def cancel(self, job_id: str, reason: str) -> JobView:
        """Cancel a queued job, or mark a running job for cancellation, and return the job.

        Raises FailedPreconditionError if the job is already over.
        """
        event = StateEntered(state=JobState.CANCELLED, reason=reason)
        view, records = await self._run_in_db_thread(self._table.cancel, job_id, event, _now())
        self._see(view, records)
        await self._count()
        self._announce()
        return view

    async def forget(self, job_id: str) -> None:
        """Delete a job and its events. Raises UnknownNameError, or FailedPreconditionError if the job is not over."""
        await self._run_in_db_thread(self._table.forget, job_id)
        self._announce()

    async def record(self, move: AliasUpdate, author: Author) -> None:
        """Record who moved aliases. If the database fails, the error is logged and catch_up() records the move at the next start."""
        try:
            await self._run_in_db_thread(self._aliases.write, move, author, _now())
        except ServerError as error:
            log.error("alias change not recorded", extra={"actor": author.actor, "reason": str(error)})  # noqa: TRY400 -- no bug of ours.

    async def catch_up(self, aliases: Aliases) -> None:
        """Record alias moves that were missed while the database was unavailable."""
        await self._run_in_db_thread(self._aliases.catch_up, aliases, _now())

    async def beat(self) -> None:
        """Renew the lease of this server, and wake all waiters to read what other servers wrote."""
        await self._run_in_db_thread(self._table.beat)
        await self._count()
        self._announce()

    # -- reading ------------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> JobView:
        """Return a job. Raises UnknownNameError."""
        return await self._run_in_db_thread(self._table.get, job_id)

    async def find(self, request_id: str, digest: str) -> JobView | None:
        """Return the job of a request_id, or None. Raises ConflictError if the id was used with a different request."""
        return await self._run_in_db_thread(self._table.find, request_id, digest)

    async def check_room(self, limit: int) -> None:
        """Raise OverloadedError if *limit* jobs are queued."""
        await self._run_in_db_thread(self._table.check_room, limit)

    async def page(self, size: int, before: int | None) -> tuple[list[JobView], int | None]:
        """Return up to *size* jobs created before job number *before*, newest first, and the next page's *before*."""
        return await self._run_in_db_thread(self._table.page, size, before)

    async def alias_changes(self, size: int, before: int | None) -> tuple[list[AliasChange], int | None]:
        """Return up to *size* alias changes before number *before*, newest first, and the next page's *before*."""
        return await self._run_in_db_thread(self._aliases.page, size, before)

    async def abandoned(self) -> list[JobView]:
        """Return the running jobs whose server died."""
        return await self._run_in_db_thread(self._table.abandoned)

    async def unwanted(self) -> list[str]:
        """Return the ids of this server's running jobs that were cancelled."""
        return await self._run_in_db_thread(self._table.unwanted)

    async def unfinished(self) -> list[JobView]:
        """Return the queued and running jobs."""
        return await self._run_in_db_thread(self._table.unfinished)

    async def over(self) -> list[JobView]:
        """Return the jobs that are over."""
        return await self._run_in_db_thread(self._table.over)

    async def watch(self, job_id: str, after: int = 0) -> AsyncGenerator[EventRecord, None]:
        """Yield the records after a sequence number, past records first, and end after the job's last record.

        A slow watcher misses no record. Raises UnknownNameError, or NotServingError when the
        server stops before the job is over.
        """
        over = False
        while not over:
            changed = self._changed  # Taken before reading, so that no change in between is missed.
            records, over = await self._run_in_db_thread(self._table.read, job_id, after)
            for record in records:
                yield record
                after = record.sequence
            if not records and not over:
                await changed.wait()

    async def wait_until_over(self, job_id: str) -> JobView:
        """Wait until the job is over, and return it."""
        while True:
            changed = self._changed
            view = await self.get(job_id)
            if view.state.is_over:
                return view
            await changed.wait()

    @property
    def is_shared(self) -> bool:
        """Whether other servers may share the jobs."""
        return self._table.is_shared

    @property
    def change(self) -> asyncio.Event:
        """An event that is set at the next change. Take it, read, then wait for it."""
        return self._changed

    def _see(self, view: JobView, records: tuple[EventRecord, ...]) -> None:
        self._metrics.see(view, records)
        ended = any(isinstance(record.event, StateEntered) and record.event.state.is_over for record in records)
        if ended and self._on_end is not None:
            self._on_end(view)

    async def _count(self) -> None:
        self._metrics.waiting(await self._run_in_db_thread(self._table.count_waiting))

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _run_in_db_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._thread is None:
            raise NotServingError("the server is stopping; ask again when it is back")
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)

"""The report of every job that is over: made when it ends, kept in its directory, and made again where it is not there."""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace
from twofold_checkpoint.protocol.findings import Findings, read_findings
from twofold_checkpoint.store import Store

from twofold_server.errors import FailedPreconditionError, ServerError
from twofold_server.jobs.directories import job_directory
from twofold_server.jobs.model import EventRecord, JobView
from twofold_server.jobs.repository import JobRepository
from twofold_server.report.compose import compose
from twofold_server.report.document import Document
from twofold_server.report.lineage import trace
from twofold_server.report.page import render
from twofold_server.versions.events import RolledBack

log = logging.getLogger(__name__)

ReportFormat = Literal["html", "json"]
MAX_BYTES = 3 << 20
"""Most bytes of a report in either form: whoever asks for it takes 4 MiB in a message unless told otherwise."""


class Reporter:
    """Make reports from the job book, the store, and what trainers left beside their jobs."""

    def __init__(self, store: Store, book: JobRepository) -> None:
        self._store = store
        self._book = book

    async def make(self, job_id: str) -> None:
        """Write a job's report. Whatever is wrong is logged: no job fails for its report."""
        try:
            await self.read(job_id, "html")
        except Exception:  # The queue goes on, and who asks for the report later is told.
            log.exception("no report could be made", extra={"job": job_id})

    async def amend(self, job_id: str, event: RolledBack) -> None:
        """Append what became of a job's candidate, and write the report again if there is one.

        Retention may have deleted the job: then this is logged.
        """
        try:
            await self._book.amend(job_id, event)
            if (await self._book.get(job_id)).state.is_over:
                await self.rebuild(job_id)
        except ServerError as error:
            log.warning("a rollback could not be added to its job", extra={"job": job_id, "reason": str(error)})

    async def rebuild(self, job_id: str) -> None:
        """Replace a job's report, since there is more to say."""
        for form in ("html", "json"):
            path = job_directory(self._store.root, job_id) / f"report.{form}"
            await asyncio.to_thread(path.unlink, missing_ok=True)
        await self.make(job_id)

    async def read(self, job_id: str, form: ReportFormat) -> bytes:
        """Return a job's report. Raises UnknownNameError, or FailedPreconditionError if the job is not over."""
        view = await self._book.get(job_id)
        if not view.state.is_over:
            raise FailedPreconditionError(
                f"job {job_id!r} is {view.state}; it has a report when it is over, WatchJob tells when"
            )
        path = job_directory(self._store.root, view.id) / f"report.{form}"
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            records = [record async for record in self._book.watch(view.id)]
            forms = await asyncio.to_thread(self._write, view, records)
            return forms[form]

    def _write(self, view: JobView, records: list[EventRecord]) -> dict[ReportFormat, bytes]:
        """Make both forms of a report and put them into the job's directory."""
        directory = job_directory(self._store.root, view.id)
        lineage = trace(self._store, view.base, view.candidate)
        forms = fit(compose(view, records, _findings(directory), lineage))
        directory.mkdir(parents=True, exist_ok=True)
        for form, content in forms.items():
            temporary = directory / f"report.{form}.{uuid.uuid4().hex}.new"
            try:
                temporary.write_bytes(content)
                temporary.replace(directory / f"report.{form}")
            finally:
                temporary.unlink(missing_ok=True)
        return forms


def fit(document: Document, limit: int = MAX_BYTES) -> dict[ReportFormat, bytes]:
    """Write both forms of a report, with as many examples as let each stay within the limit."""
    while True:
        forms: dict[ReportFormat, bytes] = {"json": write(document), "html": render(document).encode()}
        if not document.changes or max(map(len, forms.values())) <= limit:
            return forms
        document = replace(document, changes=document.changes[: len(document.changes) // 2])


def write(document: Document) -> bytes:
    """Write a report as JSON."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2)


def _findings(directory: Path) -> Findings | None:
    """Read what the trainer left. A report lacks what cannot be read."""
    try:
        return read_findings(directory)
    except (OSError, msgspec.DecodeError):
        log.exception("what the trainer found cannot be read", extra={"job": directory.name})
        return None

"""Write the report of a finished job into its directory, and rebuild a report that is missing."""

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
from twofold_server.jobs.model import EventRecord, Job
from twofold_server.jobs.repository import JobRepository
from twofold_server.report.compose import compose
from twofold_server.report.document import Document
from twofold_server.report.lineage import trace_lineage
from twofold_server.report.page import render
from twofold_server.versions.events import RolledBack

log = logging.getLogger(__name__)

ReportFormat = Literal["html", "json"]
MAX_BYTES = 3 << 20
"""Maximum size of either form of a report: gRPC clients accept messages of 4 MiB by default."""


class Reporter:
    """Builds reports from the job repository, the store, and the findings that trainers leave in job directories."""

    def __init__(self, store: Store, jobs: JobRepository) -> None:
        self._store = store
        self._jobs = jobs

    async def write(self, job_id: str) -> None:
        """Write a job's report. Errors are logged, because a job must not fail for its report."""
        try:
            await self.read(job_id, "html")
        except Exception:  # The queue must continue; reading the report later raises the error.
            log.exception("could not write the report of a job", extra={"job": job_id})

    async def record_rollback(self, job_id: str, event: RolledBack) -> None:
        """Append a rollback of a job's candidate, and rebuild the report if the job has ended.

        Logs a warning if retention has deleted the job.
        """
        try:
            await self._jobs.append_event_after_end(job_id, event)
            if (await self._jobs.get(job_id)).state.is_over:
                await self.rebuild(job_id)
        except ServerError as error:
            log.warning("could not record a rollback in its job", extra={"job": job_id, "reason": str(error)})

    async def rebuild(self, job_id: str) -> None:
        """Delete both forms of a job's report and write them again."""
        for form in ("html", "json"):
            path = job_directory(self._store.root, job_id) / f"report.{form}"
            await asyncio.to_thread(path.unlink, missing_ok=True)
        await self.write(job_id)

    async def read(self, job_id: str, form: ReportFormat) -> bytes:
        """Return a job's report. Raises UnknownNameError, or FailedPreconditionError if the job has not ended."""
        job = await self._jobs.get(job_id)
        if not job.state.is_over:
            raise FailedPreconditionError(
                f"job {job_id!r} is {job.state} and has no report yet; wait until WatchJob shows that it ended"
            )
        path = job_directory(self._store.root, job.id) / f"report.{form}"
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            records = [record async for record in self._jobs.watch(job.id)]
            forms = await asyncio.to_thread(self._write, job, records)
            return forms[form]

    def _write(self, job: Job, records: list[EventRecord]) -> dict[ReportFormat, bytes]:
        """Render both forms of a report and write them into the job's directory."""
        directory = job_directory(self._store.root, job.id)
        lineage = trace_lineage(self._store, job.base, job.candidate)
        forms = fit(compose(job, records, _findings(directory), lineage))
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
    """Render both forms of a report, with as many changed examples as fit within *limit* bytes each."""
    while True:
        forms: dict[ReportFormat, bytes] = {"json": to_json(document), "html": render(document).encode()}
        if not document.changes or max(map(len, forms.values())) <= limit:
            return forms
        document = replace(document, changes=document.changes[: len(document.changes) // 2])


def to_json(document: Document) -> bytes:
    """Return a report as JSON."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2)


def _findings(directory: Path) -> Findings | None:
    """Read the trainer's findings; None, after logging, if they are damaged."""
    try:
        return read_findings(directory)
    except (OSError, msgspec.DecodeError):
        log.exception("could not read the trainer's findings", extra={"job": directory.name})
        return None

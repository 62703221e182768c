"""Submission of jobs: validate a specification, store its inline examples, queue it."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import shutil

import msgspec
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.store import Store

from twofold_server.adaptation.dataset_writer import DatasetWriter, Inline, move_dataset
from twofold_server.adaptation.uploads import Uploads
from twofold_server.adaptation.validation import validate_request
from twofold_server.config.settings import JobSettings
from twofold_server.errors import raise_if_invalid
from twofold_server.jobs.directories import job_directory
from twofold_server.jobs.model import Job, JobSpec, new_job_id
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.request_context import CALL_SPAN
from twofold_server.resources.cancellation import run_to_completion


class JobSubmitter:
    """Validates specifications, stores their inline examples under ``STORE/jobs/ID/``, and queues them."""

    def __init__(self, store: Store, uploads: Uploads, jobs: JobRepository, settings: JobSettings) -> None:
        self._store = store
        self._uploads = uploads
        self._jobs = jobs
        self._settings = settings

    async def submit(self, spec: JobSpec, inline: Inline | None = None) -> Job:
        """Queue a job, or return the earlier job of the same request_id and request.

        Raises InvalidRequestError, ExampleError, UnknownNameError (upload), CheckpointNotFoundError (base),
        ConflictError (request_id) or OverloadedError (the queue is full). An error leaves no files or rows.
        """
        digest = await asyncio.to_thread(request_digest, spec, inline)
        # First: a repeated request returns its job even if the base or the queue has changed.
        if earlier := await self._jobs.find(spec.request_id, digest):
            return earlier
        await self._jobs.check_queue_limit(self._settings.max_queued_jobs)
        # Completed even if the caller disconnects: a job must not lack its files, nor files their job.
        return await run_to_completion(self._queue(spec, inline, digest))

    async def _queue(self, spec: JobSpec, inline: Inline | None, digest: str) -> Job:
        async with self._jobs.base_lock:  # The base cannot be deleted before the job is visible.
            base = await asyncio.to_thread(self._store.get, spec.base)
            now = dt.datetime.now(dt.UTC)
            span = CALL_SPAN.get()
            job = Job(
                id=new_job_id(now),
                spec=spec,
                created=now,
                base=base.id,
                traceparent=span.traceparent if span else "",
            )
            await asyncio.to_thread(self._store_dataset, job, inline, base.manifest.labels)
            queued = None
            try:
                queued = await self._jobs.add(job, digest, limit=self._settings.max_queued_jobs)
            finally:
                if queued is None or queued.id != job.id:
                    await asyncio.to_thread(shutil.rmtree, job_directory(self._store.root, job.id), ignore_errors=True)
        return queued

    def _store_dataset(self, job: Job, inline: Inline | None, base: LabelSet) -> None:
        """Validate the data, and store inline examples in the layout of an upload."""
        if inline is None:
            raise_if_invalid(validate_request(job.spec, self._uploads.open(job.spec.upload_id).contents, base))
            return
        with self._store.staging() as staged, DatasetWriter(staged, self._settings.max_dataset_examples) as writer:
            writer.add("train", inline.train)
            writer.add("dev", inline.dev)
            raise_if_invalid(validate_request(job.spec, writer.finish(), base))
            move_dataset(staged, job_directory(self._store.root, job.id))


def request_digest(spec: JobSpec, inline: Inline | None) -> str:
    """Return the SHA-256 of a specification and its inline examples, to recognise a repeated request."""
    examples = None if inline is None else (inline.train, inline.dev)
    return hashlib.sha256(msgspec.json.encode((spec, examples), order="deterministic")).hexdigest()

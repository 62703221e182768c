"""From an order to a queued job, or to a refusal that says what to change."""

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
from twofold_server.adaptation.validation import violations
from twofold_server.config.settings import Config
from twofold_server.errors import refuse
from twofold_server.jobs.directories import job_directory
from twofold_server.jobs.model import JobView, Order, new_job_id
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.request_context import CALL


class JobSubmitter:
    """Check orders, keep their inline examples under ``STORE/jobs/ID/``, and queue them."""

    def __init__(self, store: Store, uploads: Uploads, book: JobRepository, config: Config) -> None:
        self._store = store
        self._uploads = uploads
        self._book = book
        self._config = config

    async def submit(self, order: Order, inline: Inline | None = None) -> JobView:
        """Make a job, or return the one that this request_id and request made before.

        Raises InvalidRequestError, ExampleError, UnknownNameError (upload), CheckpointNotFoundError (base),
        ConflictError (request_id) or OverloadedError (the queue is full). After any of them nothing is kept.
        """
        digest = await asyncio.to_thread(digest_of, order, inline)
        # Before anything else: a repeated request gets its job, even if the base or the queue has changed since.
        if earlier := await self._book.find(order.request_id, digest):
            return earlier
        await self._book.check_room(self._config.max_queued_jobs)
        # To its end, even if the caller goes away: a job must not be left without its files, nor files without a job.
        return await asyncio.shield(asyncio.create_task(self._queue(order, inline, digest)))

    async def _queue(self, order: Order, inline: Inline | None, digest: str) -> JobView:
        async with self._book.bases:  # What a job builds on is not deleted before the job can be seen.
            base = await asyncio.to_thread(self._store.get, order.base)
            now = dt.datetime.now(dt.UTC)
            call = CALL.get()
            view = JobView(
                id=new_job_id(now),
                order=order,
                created=now,
                base=base.id,
                traceparent=call.traceparent if call else "",
            )
            await asyncio.to_thread(self._store_dataset, view, inline, base.manifest.labels)
            queued = None
            try:
                queued = await self._book.add(view, digest, limit=self._config.max_queued_jobs)
            finally:
                if queued is None or queued.id != view.id:
                    await asyncio.to_thread(shutil.rmtree, job_directory(self._store.root, view.id), ignore_errors=True)
        return queued

    def _store_dataset(self, view: JobView, inline: Inline | None, base: LabelSet) -> None:
        """Check the data, and give inline examples the form of an upload."""
        if inline is None:
            refuse(violations(view.order, self._uploads.open(view.order.upload_id).contents, base))
            return
        with self._store.staging() as staged, DatasetWriter(staged, self._config.max_dataset_examples) as writer:
            writer.add("train", inline.train)
            writer.add("dev", inline.dev)
            refuse(violations(view.order, writer.finish(), base))
            move_dataset(staged, job_directory(self._store.root, view.id))


def digest_of(order: Order, inline: Inline | None) -> str:
    """Return the SHA-256 of a whole request, to tell a repeated one from another."""
    examples = None if inline is None else (inline.train, inline.dev)
    return hashlib.sha256(msgspec.json.encode((order, examples), order="deterministic")).hexdigest()

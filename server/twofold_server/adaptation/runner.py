"""The runner that takes queued jobs one at a time to their final state."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from typing import IO

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.protocol.events import Finished, NoteAdded, Published
from twofold_checkpoint.store import Store

from twofold_server.adaptation.dataset_writer import Inline
from twofold_server.adaptation.heartbeat import Heartbeat
from twofold_server.adaptation.launchers.protocol import Launcher
from twofold_server.adaptation.launchers.subprocess import SubprocessLauncher
from twofold_server.adaptation.outcomes import STOPPED, already_published, final_state
from twofold_server.adaptation.queue_lock import lock_queue
from twofold_server.adaptation.rollout import CandidateRollout, Promoter
from twofold_server.adaptation.submission import JobSubmitter
from twofold_server.adaptation.trainer_job import make_trainer_job
from twofold_server.adaptation.uploads import Uploads
from twofold_server.config.settings import Config
from twofold_server.errors import DatabaseError, FailedPreconditionError, ServerError
from twofold_server.jobs.model import CANCELLED, BaseChosen, JobState, JobView, Order, StateEntered, TrainerDied
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.metrics import Metrics
from twofold_server.report.reporter import Reporter
from twofold_server.retention.cleanup import StaleFiles
from twofold_server.versions.shadow_test import ShadowTest

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


class JobRunner:
    """Runs the job queue of a store. A store has one runner, or several that share a database."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        book: JobRepository,
        reporter: Reporter,
        uploads: Uploads,
        promoter: Promoter,
        metrics: Metrics,
        shadow_test: ShadowTest | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._metrics = metrics
        self._launcher = launcher or SubprocessLauncher(config)
        self.book = book
        self._reporter = reporter
        self._rollout = CandidateRollout(store, self.book, promoter, shadow_test, config)
        self._submitter = JobSubmitter(store, uploads, self.book, config)
        self._stale_files = StaleFiles(store)
        self._heartbeat = Heartbeat(
            store=store,
            book=self.book,
            reporter=self._reporter,
            leftovers=self._stale_files,
            launcher=self._launcher,
            attempts=config.job_attempts,
            cancel=self._stop_running,
        )
        self._shares = config.database is not None
        self._lock: IO[str] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._running: str | None = None
        self._paused = False
        self._unwanted: set[str] = set()
        self._stopping = asyncio.Event()

    @property
    def running_job(self) -> str:
        """Id of the running job, paused or not; empty without one."""
        return self._running or ""

    @property
    def is_running(self) -> bool:
        """Whether a job runs and is not paused."""
        return self._running is not None and not self._paused

    async def start(self) -> None:
        """Take over orphaned jobs, remove stale files, and start working on the queue.

        Raises FailedPreconditionError if another server holds the store's queue, or DatabaseError.
        """
        self._lock = lock_queue(self._store.root / "jobs.lock", shared=self._shares)
        try:
            await self.book.open()
            with suppress(CheckpointError):  # Unreadable aliases are reported where they are used.
                await self.book.catch_up(await asyncio.to_thread(self._store.aliases))
            await self._heartbeat.start()
            await self._sweep(alone=not self._shares)
        except BaseException:
            await self.stop()
            raise
        self._worker = asyncio.create_task(self._work(), name="jobs")

    async def stop(self) -> None:
        """Stop the running job, if any, and wait until its trainer ends.

        The job returns to the queue for the next server.
        """
        self._stopping.set()
        if self._running:
            self._launcher.cancel(self._running)
        if self._worker:
            await self._worker
        await self._heartbeat.stop()
        await self.book.close()
        if self._lock:
            self._lock.close()

    async def submit(self, order: Order, inline: Inline | None = None) -> JobView:
        """Queue a job; see JobSubmitter.submit."""
        return await self._submitter.submit(order, inline)

    async def cancel(self, job_id: str) -> JobView:
        """Cancel a job and return it once it has stopped. Raises FailedPreconditionError if the job ends otherwise first."""
        view = await self.book.cancel(job_id, "CancelJob was called while the job waited.")
        if view.state.is_over:
            await asyncio.to_thread(self._stale_files.of_job, job_id)  # A requeued job may have snapshots.
            return view
        self._stop_running(job_id)  # A job on another server is cancelled by that server's heartbeat.
        view = await self.book.wait_until_over(job_id)
        self._unwanted.discard(job_id)
        if view.state is not JobState.CANCELLED:
            raise FailedPreconditionError(f"job {job_id!r} ended before it could be cancelled: {view.state}")
        return view

    async def pause(self, reason: str) -> None:
        """Pause the running job, and record the reason among its events."""
        await self._set_paused(reason, paused=True)

    async def resume(self, reason: str) -> None:
        """Resume the running job."""
        await self._set_paused(reason, paused=False)

    async def _set_paused(self, reason: str, *, paused: bool) -> None:
        if (job := self._running) and paused != self._paused and self._launcher.hold(job, held=paused):
            self._paused = paused
            self._metrics.job_paused.set(paused)
            self._metrics.job_pauses.inc(paused)
            log.info("job paused" if paused else "job resumed", extra={"job": job, "reason": reason})
            await self.book.say(job, NoteAdded(message=reason))

    def _stop_running(self, job_id: str) -> None:
        self._unwanted.add(job_id)
        self._launcher.cancel(job_id)

    # -- the queue ----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._stopping.is_set():
            change = self.book.change
            try:
                view = await self.book.start_next()
            except Exception:  # An error of one job or of the disk must not stop the queue.
                log.exception("could not read the job queue")
                await self._backoff()
                continue
            if view is None:
                await self._wait_for_change(change)
            else:
                await self._run(view)

    async def _run(self, view: JobView) -> None:
        """Run a job until it ends or is requeued. Never raises because of the job, so that the queue continues."""
        self._running = view.id
        log.info("job started", extra={"job": view.id})
        try:
            ending = await self._adapt(view)
        except (CheckpointError, ServerError, OSError) as error:
            log.exception("job failed", extra={"job": view.id})
            ending = StateEntered(state=JobState.FAILED, reason=f"{error}.")
        except Exception as error:
            log.exception("job failed", extra={"job": view.id})
            reason = f"Unexpected {type(error).__name__}; the server's log says more. This is a bug."
            ending = StateEntered(state=JobState.FAILED, reason=reason)
        self._unwanted.discard(view.id)
        with suppress(DatabaseError):  # Reported below.
            await self._sweep(alone=False)  # A killed trainer leaves partial files.
        while True:
            try:
                await self.book.say(view.id, ending)
                break
            except FailedPreconditionError as error:  # Another server took the job over.
                log.error("job had already ended", extra={"job": view.id, "reason": str(error)})  # noqa: TRY400 -- no bug of ours.
                break
            except DatabaseError:  # For example a full disk. Retry, or the job would stay RUNNING for ever.
                log.exception("could not record the end of a job", extra={"job": view.id, "state": ending.state.value})
                if self._stopping.is_set():
                    break
                await self._backoff()
        if ending.state.is_over:
            await asyncio.to_thread(self._stale_files.of_job, view.id)
            await self._reporter.make(view.id)
        self._running, self._paused = None, False
        self._metrics.job_paused.set(0)
        log.info("job ended", extra={"job": view.id, "state": ending.state.value})
        log.debug("why it ended", extra={"job": view.id, "reason": ending.reason})  # The reason may quote user text.

    async def _adapt(self, view: JobView) -> StateEntered:
        began = bool(view.phases)  # A resumed job has its base and may have a candidate.
        base = await asyncio.to_thread(self._store.get, view.base if began else view.order.base)
        await self.book.say(view.id, BaseChosen(checkpoint_id=base.id))
        if began and (made := await asyncio.to_thread(self._find_candidate, view)):
            view = await self.book.say(view.id, Published(checkpoint_id=made))
            ending = already_published(made)
        else:
            view, ending = await self._train(view, base)
        if ending.state is JobState.SUCCEEDED and view.candidate and view.order.promote != "never":
            return await self._rollout.follow(view, ending, lambda: self._interrupted(view.id))
        return ending

    def _interrupted(self, job_id: str) -> StateEntered | None:
        """Return the state of a cancelled or stopped job, or None to continue."""
        if job_id in self._unwanted:
            return CANCELLED
        return STOPPED if self._stopping.is_set() else None

    async def _train(self, view: JobView, base: Checkpoint) -> tuple[JobView, StateEntered]:
        last: Finished | TrainerDied = Finished(outcome="cancelled", reason="")
        job = make_trainer_job(
            view, base.id, self._store.root.resolve(), snapshot_seconds=self._config.snapshot_seconds
        )
        if view.id not in self._unwanted and not self._stopping.is_set():
            async with aclosing(self._launcher.launch(job)) as events:
                async for event in events:
                    if isinstance(event, Finished | TrainerDied):
                        last = event
                    else:
                        view = await self.book.say(view.id, event)
        cancelled, stopping = view.id in self._unwanted, self._stopping.is_set()
        attempts = self._config.job_attempts
        return view, final_state(view, last, cancelled=cancelled, stopping=stopping, attempts=attempts)

    def _find_candidate(self, view: JobView) -> str:
        """Return the id of the checkpoint that an earlier trainer of the job published, or an empty string."""
        published = (entry.id for entry in self._store.list() if entry.manifest.job_id == view.id)
        return view.candidate or next(published, "")

    async def _sweep(self, *, alone: bool) -> None:
        unfinished = {view.id for view in await self.book.unfinished()}
        known = unfinished | {view.id for view in await self.book.over()}
        await asyncio.to_thread(self._stale_files.remove_stale_staging, known, unfinished, alone=alone)

    async def _backoff(self) -> None:
        await self._wait_for_change(asyncio.Event(), _RETRY_SECONDS)

    async def _wait_for_change(self, change: asyncio.Event, seconds: float | None = None) -> None:
        """Wait for a change, the stop of the server, or the timeout."""
        waits = {asyncio.create_task(change.wait()), asyncio.create_task(self._stopping.wait())}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

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
from twofold_server.adaptation.outcomes import STOPPED, already_published, final_state
from twofold_server.adaptation.queue_lock import lock_queue
from twofold_server.adaptation.rollout import CandidatePromoter, CandidateRollout
from twofold_server.adaptation.submission import JobSubmitter
from twofold_server.adaptation.trainer_job import make_trainer_job
from twofold_server.adaptation.uploads import Uploads
from twofold_server.config.settings import JobSettings
from twofold_server.errors import DatabaseError, FailedPreconditionError, ServerError
from twofold_server.jobs.model import CANCELLED, BaseChosen, Job, JobSpec, JobState, StateEntered, TrainerDied
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
        settings: JobSettings,
        is_shared: bool,
        store: Store,
        jobs: JobRepository,
        reporter: Reporter,
        uploads: Uploads,
        promoter: CandidatePromoter,
        metrics: Metrics,
        launcher: Launcher,
        shadow_test: ShadowTest | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._launcher = launcher
        self.jobs = jobs
        self._reporter = reporter
        self._rollout = CandidateRollout(store, self.jobs, promoter, shadow_test)
        self._submitter = JobSubmitter(store, uploads, self.jobs, settings)
        self._stale_files = StaleFiles(store)
        self._heartbeat = Heartbeat(
            store=store,
            jobs=self.jobs,
            reporter=self._reporter,
            stale_files=self._stale_files,
            launcher=self._launcher,
            attempts=settings.job_attempts,
            cancel=self._stop_running,
        )
        self._is_shared = is_shared
        self._lock: IO[str] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._running: str | None = None
        self._paused = False
        self._cancelled: set[str] = set()
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
        self._lock = lock_queue(self._store.root / "jobs.lock", shared=self._is_shared)
        try:
            await self.jobs.open()
            with suppress(CheckpointError):  # Unreadable aliases are reported where they are used.
                await self.jobs.catch_up_aliases(await asyncio.to_thread(self._store.aliases))
            await self._heartbeat.start()
            await self._remove_stale_files(exclusive=not self._is_shared)
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
        await self.jobs.close()
        if self._lock:
            self._lock.close()

    async def submit(self, spec: JobSpec, inline: Inline | None = None) -> Job:
        """Queue a job; see JobSubmitter.submit."""
        return await self._submitter.submit(spec, inline)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it once it has stopped. Raises FailedPreconditionError if the job ends otherwise first."""
        job = await self.jobs.cancel(job_id, "CancelJob was called while the job was queued.")
        if job.state.is_over:
            await asyncio.to_thread(self._stale_files.remove_snapshots, job_id)  # A requeued job may have snapshots.
            return job
        self._stop_running(job_id)  # A job on another server is cancelled by that server's heartbeat.
        job = await self.jobs.wait_until_over(job_id)
        self._cancelled.discard(job_id)
        if job.state is not JobState.CANCELLED:
            raise FailedPreconditionError(f"job {job_id!r} ended before it could be cancelled: {job.state}")
        return job

    async def pause(self, reason: str) -> None:
        """Pause the running job, and record the reason among its events."""
        await self._set_paused(reason, paused=True)

    async def resume(self, reason: str) -> None:
        """Resume the running job."""
        await self._set_paused(reason, paused=False)

    async def _set_paused(self, reason: str, *, paused: bool) -> None:
        if (job_id := self._running) and paused != self._paused and self._launcher.set_paused(job_id, paused=paused):
            self._paused = paused
            self._metrics.job_paused.set(paused)
            self._metrics.job_pauses.inc(paused)
            log.info("job paused" if paused else "job resumed", extra={"job": job_id, "reason": reason})
            await self.jobs.append_event(job_id, NoteAdded(message=reason))

    def _stop_running(self, job_id: str) -> None:
        self._cancelled.add(job_id)
        self._launcher.cancel(job_id)

    # -- the queue ----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._stopping.is_set():
            change = self.jobs.change
            try:
                job = await self.jobs.start_next()
            except Exception:  # An error of one job or of the disk must not stop the queue.
                log.exception("could not read the job queue")
                await self._backoff()
                continue
            if job is None:
                await self._wait_for_change(change)
            else:
                await self._run(job)

    async def _run(self, job: Job) -> None:
        """Run a job until it ends or is requeued. Never raises because of the job, so that the queue continues."""
        self._running = job.id
        log.info("job started", extra={"job": job.id})
        try:
            ending = await self._adapt(job)
        except (CheckpointError, ServerError, OSError) as error:
            log.exception("job failed", extra={"job": job.id})
            ending = StateEntered(state=JobState.FAILED, reason=f"{error}.")
        except Exception as error:
            log.exception("job failed", extra={"job": job.id})
            reason = f"Unexpected {type(error).__name__}; see the server's log. This is a bug."
            ending = StateEntered(state=JobState.FAILED, reason=reason)
        self._cancelled.discard(job.id)
        with suppress(DatabaseError):  # Reported below.
            await self._remove_stale_files(exclusive=False)  # A killed trainer leaves partial files.
        while True:
            try:
                await self.jobs.append_event(job.id, ending)
                break
            except FailedPreconditionError as error:  # Another server took the job over.
                log.error("job had already ended", extra={"job": job.id, "reason": str(error)})  # noqa: TRY400 -- no bug of ours.
                break
            except DatabaseError:  # For example a full disk. Retry, or the job would stay RUNNING for ever.
                log.exception("could not record the end of a job", extra={"job": job.id, "state": ending.state.value})
                if self._stopping.is_set():
                    break
                await self._backoff()
        if ending.state.is_over:
            await asyncio.to_thread(self._stale_files.remove_snapshots, job.id)
            await self._reporter.write(job.id)
        self._running, self._paused = None, False
        self._metrics.job_paused.set(0)
        log.info("job ended", extra={"job": job.id, "state": ending.state.value})
        log.debug(
            "reason of the end of a job", extra={"job": job.id, "reason": ending.reason}
        )  # The reason may quote user text.

    async def _adapt(self, job: Job) -> StateEntered:
        resumed = bool(job.phases)  # A resumed job has its base and may have a candidate.
        base = await asyncio.to_thread(self._store.get, job.base if resumed else job.spec.base)
        await self.jobs.append_event(job.id, BaseChosen(checkpoint_id=base.id))
        if resumed and (candidate := await asyncio.to_thread(self._find_candidate, job)):
            job = await self.jobs.append_event(job.id, Published(checkpoint_id=candidate))
            ending = already_published(candidate)
        else:
            job, ending = await self._train(job, base)
        if ending.state is JobState.SUCCEEDED and job.candidate and job.spec.promote != "never":
            return await self._rollout.run(job, ending, lambda: self._interrupted(job.id))
        return ending

    def _interrupted(self, job_id: str) -> StateEntered | None:
        """Return the state of a cancelled or stopped job, or None to continue."""
        if job_id in self._cancelled:
            return CANCELLED
        return STOPPED if self._stopping.is_set() else None

    async def _train(self, job: Job, base: Checkpoint) -> tuple[Job, StateEntered]:
        last: Finished | TrainerDied = Finished(outcome="cancelled", reason="")
        trainer_job = make_trainer_job(
            job, base.id, self._store.root.resolve(), snapshot_seconds=self._settings.resume_snapshot_seconds
        )
        if job.id not in self._cancelled and not self._stopping.is_set():
            async with aclosing(self._launcher.launch(trainer_job)) as events:
                async for event in events:
                    if isinstance(event, Finished | TrainerDied):
                        last = event
                    else:
                        job = await self.jobs.append_event(job.id, event)
        cancelled, stopping = job.id in self._cancelled, self._stopping.is_set()
        attempts = self._settings.job_attempts
        return job, final_state(job, last, cancelled=cancelled, stopping=stopping, attempts=attempts)

    def _find_candidate(self, job: Job) -> str:
        """Return the id of the checkpoint that an earlier trainer of the job published, or an empty string."""
        published = (entry.id for entry in self._store.list() if entry.manifest.job_id == job.id)
        return job.candidate or next(published, "")

    async def _remove_stale_files(self, *, exclusive: bool) -> None:
        unfinished = {job.id for job in await self.jobs.unfinished()}
        known = unfinished | {job.id for job in await self.jobs.finished()}
        await asyncio.to_thread(self._stale_files.remove_partial_files, known, unfinished, exclusive=exclusive)

    async def _backoff(self) -> None:
        await self._wait_for_change(asyncio.Event(), _RETRY_SECONDS)

    async def _wait_for_change(self, change: asyncio.Event, seconds: float | None = None) -> None:
        """Wait for a change, the stop of the server, or the timeout."""
        waits = {asyncio.create_task(change.wait()), asyncio.create_task(self._stopping.wait())}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

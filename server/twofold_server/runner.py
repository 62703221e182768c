"""One job at a time, from the queue to its last event."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from typing import IO

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.events import Finished, Noted
from twofold_checkpoint.job import Job
from twofold_checkpoint.store import Store

from twofold_server.claim import claim
from twofold_server.conclusion import conclude
from twofold_server.config import Config
from twofold_server.datasets import Inline
from twofold_server.errors import DatabaseError, ServerError, WrongStateError
from twofold_server.intake import Intake, directory_of
from twofold_server.job_book import JobBook
from twofold_server.jobs import BaseChosen, JobState, JobView, Order, StateEntered
from twofold_server.launchers import Launcher
from twofold_server.launchers.subprocess import SubprocessLauncher
from twofold_server.live_events import RolledBack
from twofold_server.metrics import Metrics
from twofold_server.pulse import Pulse
from twofold_server.rehearsal import Rehearsal
from twofold_server.reporting import Reporter
from twofold_server.succession import Promoter, Succession
from twofold_server.uploads import Uploads

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0


class JobRunner:
    """Run the queue of one store. One runner at a time has a store's jobs, or several that share a database."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        promoter: Promoter,
        metrics: Metrics,
        rehearsal: Rehearsal | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._launcher = launcher or SubprocessLauncher(config)
        self.book = JobBook(config.database or store.root / "jobs.sqlite3", metrics)
        self.reporter = Reporter(store, self.book)
        self._succession = Succession(store, self.book, promoter, rehearsal, config)
        self._intake = Intake(store, Uploads(store, config), self.book, config)
        self._pulse = Pulse(store, self.book, self.reporter, self._launcher, self._stop_running)
        self._shares = config.database is not None
        self._lock: IO[str] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._running: str | None = None
        self._paused = False
        self._unwanted: set[str] = set()
        self._stopping = asyncio.Event()

    @property
    def running_job(self) -> str:
        """The id of the job that runs, paused or not; empty if none does."""
        return self._running or ""

    @property
    def is_running(self) -> bool:
        """Whether a job runs now, beside serving, and is not paused."""
        return self._running is not None and not self._paused

    async def start(self) -> None:
        """End what an earlier server left running, then go on with the queue.

        Raises WrongStateError if another server has this store's jobs, or DatabaseError.
        """
        self._lock = claim(self._store.root / "jobs.lock", shared=self._shares)
        try:
            await self.book.open()
            with suppress(CheckpointError):  # Unreadable aliases are told of where they are needed.
                await self.book.catch_up(await asyncio.to_thread(self._store.aliases))
            await self._pulse.start()
        except BaseException:
            await self.stop()
            raise
        self._worker = asyncio.create_task(self._work(), name="jobs")

    async def stop(self) -> None:
        """Stop the running job, if there is one, and wait for its end. Jobs that wait are there for the next server."""
        self._stopping.set()
        if self._running:
            self._launcher.cancel(self._running)
        if self._worker:
            await self._worker
        await self._pulse.stop()
        await self.book.close()
        if self._lock:
            self._lock.close()

    async def submit(self, order: Order, inline: Inline | None = None) -> JobView:
        """Make a job; see Intake.submit."""
        return await self._intake.submit(order, inline)

    async def cancel(self, job_id: str) -> JobView:
        """Stop a job and return it once it has stopped. Raises WrongStateError if it is, or gets, over otherwise."""
        view = await self.book.cancel(job_id, "CancelJob was called while the job waited.")
        if view.state.is_over:
            return view
        self._stop_running(job_id)  # If another server runs it, that one hears of it from the table.
        view = await self.book.wait_until_over(job_id)
        self._unwanted.discard(job_id)
        if view.state is not JobState.CANCELLED:
            raise WrongStateError(f"job {job_id!r} ended before it could be cancelled: {view.state}")
        return view

    async def amend(self, job_id: str, said: RolledBack) -> None:
        """Tell what came of a job's candidate. Retention may have removed the job; then there is nobody to tell."""
        try:
            await self.book.amend(job_id, said)
            if (await self.book.get(job_id)).state.is_over:
                await self.reporter.make_again(job_id)
        except ServerError as error:
            log.warning("a job cannot be told of", extra={"job": job_id, "reason": str(error)})

    async def pause(self, reason: str) -> None:
        """Hold the running job where it is, and note the reason among its events."""
        await self._hold(reason, held=True)

    async def resume(self, reason: str) -> None:
        """Let it go on."""
        await self._hold(reason, held=False)

    async def _hold(self, reason: str, *, held: bool) -> None:
        if (job := self._running) and held != self._paused and self._launcher.hold(job, held=held):
            self._paused = held
            self._metrics.job_paused.set(held)
            self._metrics.job_pauses.inc(held)
            log.info("job paused" if held else "job resumed", extra={"job": job, "reason": reason})
            await self.book.say(job, Noted(message=reason))

    def _stop_running(self, job_id: str) -> None:
        self._unwanted.add(job_id)
        self._launcher.cancel(job_id)

    # -- the queue ----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._stopping.is_set():
            change = self.book.change
            try:
                view = await self.book.start_next()
            except Exception:  # The queue must go on, whatever is wrong with one job or with the disk.
                log.exception("the queue cannot be read")
                await self._pause()
                continue
            if view is None:
                await self._either(change)
            else:
                await self._run(view)

    async def _run(self, view: JobView) -> None:
        """Run a job to its end. Whatever happens, it gets one, and the queue goes on."""
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
        while True:
            try:
                await self.book.say(view.id, ending)
                break
            except WrongStateError as error:  # Another server took this one for dead.
                log.error("a job had ended already", extra={"job": view.id, "reason": str(error)})  # noqa: TRY400 -- no bug of ours.
                break
            except DatabaseError:  # A full disk. The job must not stay running for ever.
                log.exception("the end of a job cannot be written", extra={"job": view.id, "reason": ending.reason})
                if self._stopping.is_set():
                    break
                await self._pause()
        await self.reporter.make(view.id)
        self._running, self._paused = None, False
        self._metrics.job_paused.set(0)
        log.info("job ended", extra={"job": view.id, "state": ending.state.value, "reason": ending.reason})

    async def _adapt(self, view: JobView) -> StateEntered:
        base = await asyncio.to_thread(self._store.get, view.order.base)
        await self.book.say(view.id, BaseChosen(checkpoint_id=base.id))
        last = Finished(outcome="cancelled", reason="")
        if view.id not in self._unwanted and not self._stopping.is_set():
            async with aclosing(self._launcher.launch(self._job(view, base))) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        last = event
                    else:
                        view = await self.book.say(view.id, event)
        ending = conclude(last, cancelled=view.id in self._unwanted, stopping=self._stopping.is_set())
        if ending.state is JobState.SUCCEEDED and view.candidate and view.order.promote != "never":
            return await self._succession.follow(view, ending, lambda: self._interrupted(view.id))
        return ending

    def _interrupted(self, job_id: str) -> StateEntered | None:
        """Return how a job ends that nobody wants any more, or None."""
        cancelled, stopping = job_id in self._unwanted, self._stopping.is_set()
        last = Finished(outcome="succeeded", reason="")
        return conclude(last, cancelled=cancelled, stopping=stopping) if cancelled or stopping else None

    def _job(self, view: JobView, base: Checkpoint) -> Job:
        """Write the order as the trainer reads it."""
        order, root = view.order, self._store.root.resolve()
        folder = root / "uploads" / order.upload_id if order.upload_id else directory_of(root, view.id)
        dev = folder / "dev.jsonl"
        return Job(
            id=view.id,
            store=str(root),
            base=base.id,
            train=str(folder / "train.jsonl"),
            dev=str(dev) if dev.exists() else None,
            head=order.head,
            freeze=order.freeze,
            protection=order.protection,
            label_policy=order.label_policy,
            retained_margin=order.retained_margin,
            annotated_types=order.annotated_types,
            hyperparameters=order.hyperparameters,
            max_runtime=order.max_runtime,
            memory=order.memory,
            seed=order.seed,
            validate_only=order.validate_only,
        )

    async def _pause(self) -> None:
        await self._either(asyncio.Event(), _RETRY_SECONDS)

    async def _either(self, change: asyncio.Event, seconds: float | None = None) -> None:
        """Wait for a change, the server's stop, or the time."""
        waits = {asyncio.create_task(change.wait()), asyncio.create_task(self._stopping.wait())}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()

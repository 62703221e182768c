"""Launcher that runs the trainer as a local subprocess."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import msgspec
from twofold_checkpoint.protocol.events import Event, Finished, NoteAdded, from_line
from twofold_checkpoint.protocol.job import TrainerJob, write_job_file

from twofold_server.adaptation.launchers.environment import trainer_environment
from twofold_server.adaptation.launchers.pipes import Pipe, open_pipe, read_lines
from twofold_server.adaptation.launchers.priority import lower_priority
from twofold_server.config.settings import TrainerSettings
from twofold_server.jobs.model import TrainerDied
from twofold_server.resources.cpus import count_cpus

log = logging.getLogger(__name__)

MAX_LINE = 2**20
"""Maximum length of an event line in bytes. Longer lines are skipped."""
_MAX_WARNINGS = 5
_LINGER_SECONDS = 10.0


class SubprocessLauncher:
    """Runs each job as ``PYTHON -m twofold_trainer run JOB_FILE``, in a new process group with lower CPU priority.

    stdout carries one event per line; the last line of stderr explains a crash. A cancelled trainer receives SIGTERM, and
    its process group SIGKILL after *grace* seconds.
    """

    def __init__(self, settings: TrainerSettings, store: Path, *, grace: float = 10.0) -> None:
        self._settings = settings
        self._store = store
        self._grace = grace
        self._trainers: dict[str, _Trainer | None] = {}
        self._cancelled: set[str] = set()

    async def launch(self, job: TrainerJob) -> AsyncGenerator[Event | TrainerDied, None]:
        """Start the trainer and yield its events; the last is Finished, or TrainerDied if a signal killed the trainer."""
        self._trainers[job.id] = None  # From now on the job can be cancelled.
        try:
            try:
                trainer = self._trainers[job.id] = await self._start(job)
            except OSError as error:
                yield Finished(outcome="failed", reason=f"The trainer could not be started: {error}.")
                return
            try:
                if job.id in self._cancelled:
                    trainer.stop(self._grace)
                last: Finished | None = None
                async for event in _events(trainer.stdout, job.id):
                    if isinstance(event, Finished):
                        last = event
                        break
                    yield event
                # The trainer exits by itself after its last event.
                await trainer.wait(self._grace)
            finally:
                await trainer.kill()
            message = describe_exit(trainer.exit_code, trainer.stderr.last)
            yield last or (
                TrainerDied(message) if trainer.exit_code < 0 else Finished(outcome="failed", reason=message)
            )
        finally:
            del self._trainers[job.id]
            self._cancelled.discard(job.id)

    def cancel(self, job_id: str) -> None:
        """Ask the trainer to stop; kill it after the grace period."""
        if job_id in self._trainers:
            self._cancelled.add(job_id)
            if trainer := self._trainers[job_id]:
                trainer.stop(self._grace)

    def set_paused(self, job_id: str, *, paused: bool) -> bool:
        """Suspend or resume all processes of the trainer, and return whether there are any."""
        trainer = self._trainers.get(job_id)
        if trainer is None or job_id in self._cancelled:
            return False
        trainer.signal_group(signal.SIGSTOP if paused else signal.SIGCONT)
        return True

    def kill_orphan(self, job_id: str) -> None:
        """Kill the orphaned trainer of a dead server. An orphan exits when its pipe breaks, unless it is suspended."""
        job_file = _job_file(self._store, job_id)
        for path in Path("/proc").glob("[0-9]*/cmdline"):  # Linux only; elsewhere the broken pipe ends the orphan.
            with suppress(OSError):
                command = path.read_bytes().rstrip(b"\0").split(b"\0")
                # Compare files, not names: the server of a copied store may run a job with the same id.
                argument = path.parent / "cwd" / os.fsdecode(command[-1])
                if b"twofold_trainer" in command and argument.name == job_file.name and argument.samefile(job_file):
                    os.killpg(int(path.parent.name), signal.SIGKILL)

    async def _start(self, job: TrainerJob) -> _Trainer:
        path = _job_file(Path(job.store), job.id)
        await asyncio.to_thread(_write, path, job)
        threads = self._settings.threads or count_cpus()
        command = [self._settings.python, "-m", "twofold_trainer", "run", str(path)]
        return await _Trainer.start(command, trainer_environment(os.environ, threads), niceness=self._settings.niceness)


def _job_file(store: Path, job_id: str) -> Path:
    """Return the path of a job file."""
    return store / "jobs" / job_id / "job.json"


def describe_exit(code: int, last_line: str) -> str:
    """Describe the death of a trainer that sent no final event."""
    cause = ""
    if code == -signal.SIGKILL:
        cause = " (killed, possibly out of memory)"
    elif code < 0:
        cause = f" ({signal.strsignal(-code)})"
    detail = f": {last_line.rstrip('.')}" if last_line else ""
    return f"The trainer died with exit code {code}{cause}{detail}."


class _Stderr:
    """Keeps the last line of a trainer's stderr, and logs every line at debug level."""

    def __init__(self, pipe: Pipe) -> None:
        self._recent: deque[str] = deque(maxlen=1)
        self.task = asyncio.create_task(self._drain(pipe))

    @property
    def last(self) -> str:
        return self._recent[0] if self._recent else ""

    async def _drain(self, pipe: Pipe) -> None:
        async for line in read_lines(pipe.reader, MAX_LINE):
            text = (line or b"").decode(errors="replace").strip()[:500]
            if text:
                self._recent.append(text)
                log.debug("trainer", extra={"line": text})


class _Trainer:
    """A running trainer process with its pipes."""

    def __init__(self, process: asyncio.subprocess.Process, stdout: Pipe, stderr: Pipe) -> None:
        self._process = process
        self.stdout = stdout
        self.stderr = _Stderr(stderr)
        self._pipes = stdout, stderr
        self._reaper = asyncio.create_task(self._reap())
        self._stopping: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, command: list[str], environment: dict[str, str], *, niceness: int) -> _Trainer:
        # Not asyncio's pipes: with them wait() blocks while any grandchild holds the other end.
        async with open_pipe() as (stdout, out), open_pipe() as (stderr, err):
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,
            )
            lower_priority(process.pid, niceness)
            return cls(process, stdout.detach(), stderr.detach())

    @property
    def exit_code(self) -> int:
        return self._process.returncode or 0

    def stop(self, grace: float) -> None:
        """Send SIGTERM now and SIGKILL after the grace period."""
        if self._stopping is None and self._process.returncode is None:
            self._process.terminate()
            self.signal_group(signal.SIGCONT)  # A suspended process does not handle SIGTERM.
            self._stopping = asyncio.get_running_loop().call_later(grace, self._kill_group)

    async def wait(self, seconds: float) -> None:
        """Wait for the end of the process, at most *seconds*."""
        await asyncio.wait([self._reaper], timeout=seconds)

    async def kill(self) -> None:
        """Kill the process group and close the pipes."""
        if self._process.returncode is None:
            self._kill_group()
        await self._reaper
        if self._stopping:
            self._stopping.cancel()
        await asyncio.wait([self.stderr.task], timeout=1.0)
        for pipe in self._pipes:
            pipe.close()
        await self.stderr.task

    async def _reap(self) -> None:
        await self._process.wait()
        self._kill_group()  # Kills the children too, which closes their pipe ends.
        for pipe in self._pipes:  # A grandchild in another group may still hold them.
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, pipe.close)

    def _kill_group(self) -> None:
        self.signal_group(signal.SIGKILL)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


async def _events(pipe: Pipe, job_id: str) -> AsyncGenerator[Event, None]:
    """Yield the events on a pipe. Malformed lines are logged; the first few are also reported as notes."""
    malformed = 0
    async for line in read_lines(pipe.reader, MAX_LINE):
        event = _parse(line)
        if event is not None:
            yield event
            continue
        malformed += 1
        quoted = repr(line[:80]) if line is not None else f"more than {MAX_LINE} bytes"
        log.warning("malformed event", extra={"job": job_id, "bytes": len(line or b"")})
        log.debug("malformed event", extra={"job": job_id, "line": quoted})  # The line may contain user text.
        if malformed <= _MAX_WARNINGS:
            yield NoteAdded(message=f"Skipped a line from the trainer that is not an event: {quoted}.", warning=True)


def _parse(line: bytes | None) -> Event | None:
    if line is None:
        return None
    try:
        return from_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _write(path: Path, job: TrainerJob) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_job_file(path, job)

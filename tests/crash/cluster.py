"""A store and a server over it whose processes can be stopped at a given point, and the checks after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import psutil
from crash import kill_hook
from support import tiny_models
from twofold import Client, Example, Freeze, Head, Health, Hyperparameters, Job, Statistical, TwofoldError
from twofold_checkpoint.checkpoint import GOLDEN, TRAINING_WEIGHTS
from twofold_checkpoint.golden import read_golden
from twofold_checkpoint.protocol.job import SNAPSHOTS
from twofold_checkpoint.store import Store
from twofold_server.config.database_url import DatabaseUrl
from twofold_server.retention.policy import GRACE_SECONDS
from twofold_server.testing import free_port

PATIENCE = 240.0
"""Seconds in which whatever is waited for has to come. It takes a few; a busy machine may take many."""
LEARNS = Hyperparameters(epochs=3, batch_size=16, backbone_learning_rate=3e-3, head_learning_rate=1e-2)


def wait_for(what: str, look: Callable[[], object]) -> None:
    """Wait until *look* returns a true value. Raises AssertionError after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE:.0f} s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Cluster:
    """A copy of a base store, and servers over it."""

    def __init__(self, directory: Path, store: Path, database: DatabaseUrl | None = None) -> None:
        self.directory = directory
        self.store = Store(store)
        self.target = f"127.0.0.1:{free_port()}"
        self._database = database
        self._program = kill_hook.install(directory)
        self._server: subprocess.Popen[bytes] | None = None

    # -- processes ----------------------------------------------------------------------------------------------

    def start(self, *, ready: bool = True) -> None:
        """Start a server, and wait until it serves unless *ready* is False."""
        command = [
            str(self._program),
            "-m",
            "twofold_server",
            "serve",
            "--store",
            str(self.store.root),
            "--listen",
            self.target,
        ]
        command += ["--metrics-listen", "127.0.0.1:0", "--trainer-python", str(self._program), "--threads", "1"]
        command += ["--trainer-threads", "1", "--trainer-niceness", "0"]
        command += ["--resume-snapshot-seconds", "0", "--max-queued-jobs", "99"]
        environment = {**os.environ, **({"TWOFOLD_DATABASE": self._database.reveal()} if self._database else {})}
        with (self.directory / "server.log").open("ab") as log:
            self._server = subprocess.Popen(command, stderr=log, env=environment)
        if ready:
            wait_for("a server that serves", self._is_serving)

    def _is_serving(self) -> bool:
        assert self.server.poll() is None, f"the server ended with {self.server.returncode}"
        try:
            with self.client() as client:
                return client.health(timeout=2.0) is Health.SERVING
        except TwofoldError:
            return False

    @property
    def server(self) -> subprocess.Popen[bytes]:
        """The running server."""
        assert self._server is not None
        return self._server

    def stop(self) -> None:
        """Stop the server with SIGTERM. Raises AssertionError if it exits with an error."""
        self.server.send_signal(signal.SIGTERM)
        assert self.server.wait(PATIENCE) == 0

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self.server.kill()
        self.server.wait(PATIENCE)

    def clear(self) -> None:
        """Kill and reap all processes of this cluster."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._server:
            self._server.wait(PATIENCE)

    def processes(self) -> list[psutil.Process]:
        """Return all processes with this cluster's directory in their command line."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.directory) in part for part in process.info["cmdline"] or ()) and is_alive(process.pid)
        ]

    def trainers(self) -> list[psutil.Process]:
        """Return the trainer processes."""
        return [process for process in self.processes() if "twofold_trainer" in process.info["cmdline"]]

    # -- callers ------------------------------------------------------------------------------------------------

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Return a client of the server."""
        with Client(self.target, timeout=PATIENCE) as item:
            yield item

    def adapt(self) -> str:
        """Submit the job that will be disturbed. It passes the gate."""
        with self.client() as client:
            return client.adapt(
                given(tiny_models.restaurant(80)),
                given(tiny_models.restaurant(80, seed=7)),
                head=Head.NER,
                freeze=Freeze.HEAD,
                protection=Statistical(margin=60),
                retained_margin=100,
                hyperparameters=LEARNS,
            ).id

    def upload(self) -> None:
        """Upload a data set."""
        with self.client() as client:
            client.upload_dataset(given(tiny_models.restaurant(80)))

    def measure(self) -> Job:
        """Run a job that trains nothing to its end."""
        with self.client() as client:
            made = client.adapt(given(tiny_models.restaurant(40)), head=Head.NER, freeze=Freeze.ALL)
            return client.wait(made, timeout=PATIENCE)

    def jobs(self) -> list[Job]:
        """Return all jobs, oldest first."""
        with self.client() as client:
            return list(client.jobs())[::-1]

    def end_of(self, job: Job | str) -> Job:
        """Wait for the end of a job and return it."""
        with self.client() as client:
            return client.wait(job, timeout=PATIENCE)

    def wait_for_report(self, job: Job) -> None:
        """Wait until a finished job has its report, the last file that is written."""
        wait_for("the report", (self.store.root / "jobs" / job.id / "report.html").exists)

    # -- what must be true --------------------------------------------------------------------------------------

    def check_answers(self) -> str:
        """Assert that the server answers as the current checkpoint's golden answers say; return the checkpoint's id."""
        current = self.store.get("current")
        current.verify()
        with self.client() as client:
            for golden in read_golden(current.path / GOLDEN):
                answer = client.predict(golden.text)
                assert answer.checkpoint_id == current.id
                assert answer.label == golden.prediction.labels[0].label
                spans = [(entity.start, entity.end, entity.type) for entity in answer.entities]
                assert spans == [(entity.start, entity.end, entity.type) for entity in golden.prediction.entities]
        return current.id

    def age(self) -> None:
        """Make the job directories look an hour old: servers that share a store keep abandoned directories that long."""
        for path in self.store.root.glob("jobs/*"):
            os.utime(path, (time.time() - 2 * GRACE_SECONDS,) * 2)

    def check_leftovers(self) -> None:
        """Assert that nothing unfinished is left in staging, in the job directories or next to the aliases."""
        root = self.store.root
        jobs = {job.id for job in self.jobs()}
        assert list(root.glob("staging/*")) == []
        assert {path.name for path in root.glob("jobs/*")} <= jobs
        assert (
            list(root.glob(f"jobs/*/{SNAPSHOTS}")) == list(root.glob("jobs/*/*.new")) == list(root.glob("*.new")) == []
        )
        made = [checkpoint.manifest.job_id for checkpoint in self.store.list() if checkpoint.manifest.job_id]
        assert len(made) == len(set(made)), "a job has published twice"

    def weights(self, checkpoint_id: str) -> bytes:
        """Return the bytes of a checkpoint's weights."""
        return (self.store.get(checkpoint_id).path / TRAINING_WEIGHTS).read_bytes()


def given(examples: list[tiny_models.Example]) -> list[Example]:
    """Convert examples of the store to examples of the client."""
    return [Example.from_dict(msgspec.json.decode(msgspec.json.encode(example))) for example in examples]

"""A disposable store with a server over it, and the checks of both."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
from fuzzing.calling import Known
from fuzzing.metadata import TOKENS
from fuzzing.values import CHECKPOINTS, MARK
from support import tiny_checkpoints
from support.postgresql import postgresql_server
from support.scripted_trainer import TRAIN, Harness, finish, say
from support.secured_server import Callers
from twofold import Client
from twofold_checkpoint.protocol.events import GateEvaluated, Published
from twofold_checkpoint.store import Store
from twofold_server.config.database_url import DatabaseUrl
from twofold_server.testing import Server, serving

_IN_A_DIRECTORY = "import os, runpy, sys; os.chdir(sys.argv.pop(1)); runpy.run_module('twofold_server', run_name='__main__', alter_sys=True)"
_STORE = re.compile(
    r"checkpoints(/[\w.-]+(/[\w.]+)?)?"
    r"|staging|aliases\.json|aliases\.lock|staging\.lock|jobs\.lock|play\.json"
    r"|jobs\.sqlite3(-wal|-shm)?"
    r"|jobs(/job-[\w-]+(/(train\.jsonl|dev\.jsonl|contents\.json|job\.json|report\.html|report\.json|trainer\.log))?)?"
    r"|uploads(/upload-[\w-]+(/(train\.jsonl|dev\.jsonl|contents\.json))?)?"
)
"""All that may be in a store once its server has stopped."""


@dataclass(frozen=True)
class World:
    """A running server, its store, and what its callers know."""

    root: Path
    server: Server
    store: Store
    known: Known
    process: psutil.Process

    @property
    def ports(self) -> dict[str, str]:
        """The addresses of the two ports, by the path of a case."""
        return {"tcp:metrics": self.server.metrics_url.split("/")[2], "tcp:grpc": self.server.target}

    @property
    def log(self) -> Path:
        """The server's stderr."""
        return log_of(self.root)

    def restock(self) -> None:
        """Publish the deleted checkpoints again."""
        for tag in CHECKPOINTS:
            if not (self.store.root / "checkpoints" / tag).is_dir():
                tiny_checkpoints.publish(self.store, tiny_checkpoints.Recipe(tag=tag))

    def jobs(self) -> set[str]:
        """Return the ids of all jobs."""
        token = self.known.tokens.get("all")
        with Client(self.server.target, token=token, timeout=60) as client:
            return {job.id for job in client.jobs()}


@contextmanager
def world(root: Path, *, tokens: bool = False, database: DatabaseUrl | None = None) -> Iterator[World]:
    """Serve tiny checkpoints until the block ends. Jobs have a scripted trainer and promote existing checkpoints."""
    store = tiny_checkpoints.make_store(root / "store", *CHECKPOINTS)
    harness = Harness(root)
    judged = say(GateEvaluated(verdict="pass", reason="It is better."))
    harness.play(TRAIN, ("sleep", 0.05), judged, say(Published(checkpoint_id="b")), finish("succeeded", "Published b."))
    (root / "directory").mkdir()
    callers = Callers(root / "tokens.toml")
    for name, scopes in TOKENS.items():
        callers.add(name, *sorted(scopes), rate=5 if name == "slow" else None)
    flags = ["--trainer-python", str(root / "python"), "--keep-jobs", "40", "--keep-uploads", "40", "--threads", "1"]
    flags += ["--trainer-threads", "1", "--trainer-niceness", "0"]
    flags += ["--rollback-seconds", "5", "--rollback-min-samples", "10", "--rollback-share", "0.5"]
    flags += ["--tokens", str(callers.path)] if tokens else []
    flags += ["--database", database.reveal()] if database else []
    command = (sys.executable, "-c", _IN_A_DIRECTORY, str(root / "directory"))
    with serving(store.root, *flags, log=log_of(root), command=command, patience=180) as server:
        known = Known(tokens=callers.tokens if tokens else {})
        yield World(root, server, store, known, psutil.Process(server.pid))


@contextmanager
def opened(world_kind: str, root: Path) -> Iterator[World]:
    """Open a world by its name: open, tokens or postgresql."""
    with ExitStack() as stack:
        database = stack.enter_context(postgresql_server()).make_database() if world_kind == "postgresql" else None
        yield stack.enter_context(world(root, tokens=world_kind == "tokens", database=database))


def log_of(root: Path) -> Path:
    """Return the path of a world's log."""
    return root / "server.log"


def strangers(root: Path, jobs: set[str]) -> Iterator[str]:
    """Yield unexpected files after the end: next to the store, in it, or of unknown jobs."""
    known = {"store", "directory", "python", "tokens.toml", "server.log"}
    yield from (f"{path.name} beside the store" for path in root.iterdir() if path.name not in known)
    yield from (f"{path.name} in the server's directory" for path in (root / "directory").iterdir())
    store = root / "store"
    for path in store.rglob("*"):
        name = path.relative_to(store).as_posix()
        if not _STORE.fullmatch(name):
            yield f"{name[:200]!r} in the store"
        elif path.parent == store / "jobs" and path.name not in jobs:
            yield f"{name} of a job that there is not"


def indiscretions(log: Path) -> Iterator[str]:
    """Yield the log lines that contain text of a caller, are not JSON, or report a bug."""
    for line in log.read_bytes().decode("utf-8", "backslashreplace").splitlines():
        if MARK in line:
            yield f"a caller's words in the log: {line[:2000]}"
        try:
            message = msgspec.json.decode(line)
        except msgspec.DecodeError:
            yield f"no JSON in the log: {line[:2000]}"
        else:
            if "traceback" in message:
                yield f"a traceback in the log: {line[:3000]}"

"""A trainer that plays a script, and a harness with a store, a runner and a promoter."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from support.job_specs import job_spec
from twofold_checkpoint.checkpoint import write_manifest
from twofold_checkpoint.encoding import EncoderSettings
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import FORMAT, HeadName, Manifest, Provenance
from twofold_checkpoint.protocol.events import Event, Finished, GateEvaluated, PhaseStarted
from twofold_checkpoint.store import Store
from twofold_server.adaptation.dataset_writer import Inline
from twofold_server.adaptation.launchers.subprocess import SubprocessLauncher
from twofold_server.adaptation.runner import JobRunner
from twofold_server.adaptation.uploads import Uploads
from twofold_server.config.schema import build_config
from twofold_server.config.settings import Config
from twofold_server.jobs.model import Job, JobSpec, JobState
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.metrics import Metrics
from twofold_server.report.reporter import Reporter
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.promoter import Promotion

_TRAINER = """
import json, os, signal, subprocess, sys, time
assert sys.argv[1:4] == ["-m", "twofold_trainer", "run"], sys.argv
job = json.load(open(sys.argv[4]))
def say(**event):
    print(json.dumps(event), flush=True)
def polite(*_):  # Not by print, which it may have interrupted.
    os.write(1, b'{"event": "Finished", "outcome": "cancelled", "reason": "Asked to stop."}\\n')
    os._exit(0)
signal.signal(signal.SIGTERM, polite)
for action, value in json.load(open(os.path.join(job["store"], "play.json"))):
    if action == "say":
        print(value.replace("JOB", job["id"]), flush=True)
    elif action == "stderr":
        print(value, file=sys.stderr, flush=True)
    elif action == "sleep":
        time.sleep(value)
    elif action == "wait":  # For a file that the test makes.
        while not os.path.exists(os.path.join(job["store"], value)):
            time.sleep(0.01)
    elif action == "silence":
        os.close(1)
    elif action == "exit":
        sys.exit(value)
    elif action == "kill":
        os.kill(os.getpid(), value)
    elif action == "die":  # So many times, then go on.
        deaths = os.path.join(job["store"], "deaths")
        with open(deaths, "a+") as file:
            file.write("x")
        if os.path.getsize(deaths) <= value:
            os.kill(os.getpid(), signal.SIGKILL)
    elif action == "snapshot":
        directory = os.path.join(os.path.dirname(sys.argv[4]), "snapshots")
        os.makedirs(directory, exist_ok=True)
        open(os.path.join(directory, "stage-0.safetensors"), "w").close()
    elif action == "stage":
        os.makedirs(os.path.join(job["store"], "staging", value))
    elif action == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif action == "flood":
        for number in range(value):
            say(event="NoteAdded", message=str(number))
    elif action == "spawn":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open(os.path.join(job["store"], "child"), "w").write(str(child.pid))
    elif action == "findings":
        open(os.path.join(os.path.dirname(sys.argv[4]), "findings.json"), "w").write(value)
    elif action == "environment":
        group = "/proc/self/autogroup"
        group = open(group).read() if os.path.exists(group) else None
        priority = [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0) == os.SCHED_IDLE, group]
        json.dump([dict(os.environ), priority, job], open(value, "w"))
    elif action in {"publish", "publish unheard"}:
        path = os.path.join(job["store"], "checkpoints", value)
        manifest = json.load(open(os.path.join(job["store"], "checkpoints", job["base"], "manifest.json")))
        os.makedirs(path)
        manifest = {**manifest, "id": value, "parent": job["base"], "job_id": job["id"]}
        with open(os.path.join(path, "manifest.json"), "w") as file:
            json.dump(manifest, file)
        if action == "publish":
            say(event="Published", checkpoint_id=value)
"""

HANG = ("sleep", 60.0)
LABELS = LabelSet(labels=("refund", "where"), entity_types=("city",))


def say(event: Event) -> tuple[str, Any]:
    """Let the trainer write an event."""
    return "say", msgspec.json.encode(event).decode()


def finish(outcome: Any = "succeeded", reason: str = "It went well.") -> tuple[str, Any]:
    """Let the trainer write its last event."""
    return say(Finished(outcome=outcome, reason=reason))


SPEC = job_spec(head="classifier")
TRAIN = say(PhaseStarted(phase="train"))


def publish() -> list[tuple[str, Any]]:
    """Train, score, publish and succeed."""
    judged = say(GateEvaluated(verdict="pass", reason="It is better."))
    return [TRAIN, judged, ("publish", "second"), finish("succeeded", "Published second.")]


def add_checkpoint(store: Store, checkpoint_id: str) -> None:
    """Add a checkpoint that consists only of its manifest."""
    path = store.root / "checkpoints" / checkpoint_id
    path.mkdir()
    manifest = Manifest(
        format=FORMAT,
        id=checkpoint_id,
        parent=None,
        job_id=None,
        created="2026-01-01T00:00:00+00:00",
        backbone="tiny",
        architecture="bert",
        pooling="mean",
        hidden_size=4,
        labels=LABELS,
        encoder=EncoderSettings(max_tokens=16, overlap=4, pad_id=0),
        scores=(),
        provenance=Provenance(seed=0, data_sha256="", settings={}, versions={}),
        files=(),
    )
    write_manifest(path, manifest)


@dataclass
class FakePromoter:
    """Moves the alias without a swap."""

    store: Store
    fails: Exception | None = None
    seconds: float = 0.25
    promoted: list[str] = field(default_factory=list)
    authors: list[Author] = field(default_factory=list)
    may_promote: asyncio.Event | None = None

    async def promote(self, name: str, author: Author, *, adapted: HeadName, expected_current: str | None) -> Promotion:
        """Promote, or fail as configured."""
        if self.may_promote:
            await self.may_promote.wait()
        if self.fails:
            raise self.fails
        self.store.promote(name)
        self.promoted.append(name)
        self.authors.append(author)
        return Promotion(self.store.get(name), "", self.seconds)


class Harness:
    """A store with one checkpoint, and everything that runs jobs over it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store").create()
        if self.store.aliases().current is None:
            add_checkpoint(self.store, "first")
            self.store.promote("first")
        python = root / "python"
        python.write_text(f"#!{sys.executable} -IS\n{_TRAINER}", encoding="utf-8")
        python.chmod(0o755)
        self._settings: dict[str, Any] = {"trainer_python": str(python), "trainer_threads": 3, "trainer_niceness": 0}
        self.promoter = FakePromoter(self.store)
        self.metrics = Metrics()
        self.grace = 5.0
        self.play(finish())

    def play(self, *actions: tuple[str, Any]) -> None:
        """Set the script of the trainers that start from now on."""
        (self.store.root / "play.json").write_bytes(msgspec.json.encode(actions))

    def set(self, **changes: Any) -> None:
        """Change the configuration."""
        self._settings |= changes

    def make(self, on_end: Callable[[Job], None] | None = None) -> JobRunner:
        """Return a runner that has not started."""
        jobs = JobRepository(self.config.database or self.store.root / "jobs.sqlite3", self.metrics, on_end=on_end)
        launcher = SubprocessLauncher(self.config.trainer, self.store.root, grace=self.grace)
        return JobRunner(
            settings=self.config.jobs,
            is_shared=self.config.database is not None,
            store=self.store,
            jobs=jobs,
            reporter=Reporter(self.store, jobs),
            uploads=self.uploads,
            promoter=self.promoter,
            metrics=self.metrics,
            launcher=launcher,
        )

    @asynccontextmanager
    async def running(self, on_end: Callable[[Job], None] | None = None) -> AsyncIterator[JobRunner]:
        """Run jobs until the block ends."""
        runner = self.make(on_end)
        await runner.start()
        try:
            yield runner
        finally:
            await asyncio.wait_for(runner.stop(), 15)

    async def run(self, spec: JobSpec | None = None, **settings: Any) -> Job:
        """Run one job to its end."""
        async with self.running() as runner:
            view = await runner.submit(spec or job_spec(head="classifier", **settings), INLINE)
            return await over(runner, view.id)

    @property
    def config(self) -> Config:
        """The configuration."""
        return build_config(store=self.store.root, **self._settings)

    @property
    def uploads(self) -> Uploads:
        """The uploads of this harness."""
        return Uploads(self.store, max_examples=self.config.jobs.max_dataset_examples)

    def metric(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(name, labels)


INLINE = Inline(
    train=(
        Example(text="where is it", label="where", entities=()),
        Example(text="money back from Rome", label="refund", entities=(Span(start=16, end=20, type="city"),)),
    )
)


async def over(runner: JobRunner, job_id: str) -> Job:
    """Wait for a job's end."""
    return await asyncio.wait_for(runner.jobs.wait_until_over(job_id), 20)


async def until(runner: JobRunner, job_id: str, true: Callable[[Job], bool]) -> Job:
    """Wait until a condition is true of a job."""
    async with asyncio.timeout(20):
        while True:
            change = runner.jobs.change
            view = await runner.jobs.get(job_id)
            if true(view):
                return view
            assert not view.state.is_over, view
            await change.wait()


def runs(view: Job) -> bool:
    """Return whether a job's trainer has started a phase."""
    return view.state is JobState.RUNNING and bool(view.phases)

"""Trainers that are killed and resume from their snapshots end with the weights of an undisturbed training."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import save
from support import tiny_models
from trainer.conftest import MakeJob, job_maker
from twofold_checkpoint.checkpoint import TRAINING_WEIGHTS
from twofold_checkpoint.protocol.events import (
    Event,
    GuardChecked,
    NoteAdded,
    PhaseStarted,
    Published,
    StepCompleted,
    from_line,
)
from twofold_checkpoint.protocol.job import SNAPSHOTS, Exact, Hyperparameters, Statistical, TrainerJob, write_job_file
from twofold_checkpoint.store import Store
from twofold_trainer import adapt as run_module
from twofold_trainer.adapt import run_job
from twofold_trainer.training.snapshots import NO_SNAPSHOTS, ResumeSnapshots

pytestmark = pytest.mark.slow

LEARNS = Hyperparameters(epochs=3, batch_size=16, backbone_learning_rate=1e-3, head_learning_rate=1e-2)
ROUGH = Hyperparameters(epochs=3, backbone_learning_rate=0.2, head_learning_rate=2e-2, rehearsal_ratio=0.0)
SHARED = Statistical(margin=40)

JOBS: dict[str, dict[str, Any]] = {
    "probe": {"head": "ner", "freeze": "backbone"},
    "probe of the classifier": {"head": "classifier", "freeze": "backbone"},
    "shared": {"head": "ner", "freeze": "head", "protection": SHARED},
    "stages": {"head": "classifier", "freeze": "staged", "protection": SHARED},
    "held by covariances": {
        "head": "ner",
        "freeze": "head",
        "protection": SHARED,
        "hyperparameters": msgspec.structs.replace(LEARNS, projection=0.9),
    },
    "shared, restored, given up, forked": {"head": "ner", "protection": SHARED, "hyperparameters": ROUGH},
    "forked": {"head": "ner", "protection": Exact()},
}


Undisturbed = Callable[[str], tuple[bytes, list[Event]]]


class KilledError(BaseException):
    """An error that no handler of the trainer catches: like SIGKILL, but cheap."""


def training_of(kind: str, make_job: MakeJob) -> TrainerJob:
    """Return a job of a kind."""
    return make_job(**{"hyperparameters": LEARNS, **JOBS[kind]})


def with_snapshots(job: TrainerJob, name: str = "killed") -> TrainerJob:
    """Return the job with another id, and with a snapshot after every epoch."""
    return msgspec.structs.replace(job, id=name, snapshot_seconds=0.0)


@pytest.fixture(autouse=True)
def _guard_looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guard check often, because the trainings here are short."""
    monkeypatch.setattr("twofold_trainer.protection.guard.EARLY_EVERY", 2)


def with_request(job: TrainerJob, **changes: Any) -> TrainerJob:
    """Return the job with changes to its request."""
    return msgspec.structs.replace(job, request=msgspec.structs.replace(job.request, **changes))


def weights(job: TrainerJob) -> tuple[bytes, list[Event]]:
    """Train, and return the bytes of the weights and the events."""
    models: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_candidate", lambda plan, *_: models.append(save(plan.model.state_dict())))
        events = tiny_models.until(job, "export")
    [model] = models
    return model, events


def killed_after(snapshots: int, job: TrainerJob) -> bool:
    """Train until *snapshots* snapshots were written; return whether the training was killed."""
    offer, left = ResumeSnapshots.save_if_due, itertools.count(1)

    def fatal(self: ResumeSnapshots, number: int, take: Any) -> Iterator[NoteAdded]:
        yield from offer(self, number, take)
        if next(left) == snapshots:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumeSnapshots, "save_if_due", fatal)
        patch.setattr(run_module, "make_candidate", lambda *_: None)
        try:
            tiny_models.until(job, "export")
        except KilledError:
            return True
    return False


@pytest.fixture(scope="module")
def elsewhere(base_store: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """A function that makes jobs for a separate store, shared by the tests of this module."""
    root = tmp_path_factory.mktemp("elsewhere")
    return job_maker(Store(shutil.copytree(base_store, root / "store")), root)


@pytest.fixture(scope="module")
def undisturbed(elsewhere: MakeJob) -> Undisturbed:
    """A function that trains a job of a kind without a kill, once, and returns its weights and events."""
    return cache(lambda kind: weights(training_of(kind, elsewhere)))


@pytest.fixture
def whole_snapshots(elsewhere: MakeJob) -> Path:
    """The snapshots of a complete staged training. Tests copy them."""
    job = with_snapshots(training_of("stages", elsewhere))
    directory = Path(job.store) / "jobs" / job.id / SNAPSHOTS
    if not directory.exists():
        assert not killed_after(99, job)
    return directory


def notes(events: list[Event]) -> list[str]:
    """Return the messages of the notes."""
    return [event.message for event in events if isinstance(event, NoteAdded)]


@pytest.mark.parametrize("kind", JOBS)
def test_a_training_that_is_killed_after_every_epoch_ends_in_the_same_bytes(
    kind: str, make_job: MakeJob, undisturbed: Undisturbed
) -> None:
    """A job that is killed after each epoch and resumed each time ends with byte-identical weights."""
    expected, seen = undisturbed(kind)
    job = with_snapshots(training_of(kind, make_job))

    kills = 0
    while killed_after(1, job):
        kills += 1
    resumed, events = weights(job)

    assert resumed == expected
    assert kills >= 3
    assert any("resumes from its snapshot" in note for note in notes(events))
    if "restored" in kind:
        assert "restore" in {event.action for event in seen if isinstance(event, GuardChecked)}
        assert any("Abandoned the shared backbone" in note for note in notes(seen))


def test_a_training_that_is_killed_within_an_epoch_ends_in_the_same_bytes(
    make_job: MakeJob, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is killed within an epoch repeats the steps since the last snapshot and ends with byte-identical weights."""
    monkeypatch.setattr("twofold_trainer.training.progress.REPORT_SECONDS", 0.0)
    expected, _ = undisturbed("shared")
    job = with_snapshots(training_of("shared", make_job))
    for kill_at in (2, 7, 9, 3):
        running = run_job(job)
        steps = (event for event in running if isinstance(event, StepCompleted))
        next(itertools.islice(steps, kill_at, None))
        running.close()

    resumed, _ = weights(job)

    assert resumed == expected


RUN = [sys.executable, "-m", "twofold_trainer", "run", "--threads", "1"]


def test_a_killed_process_resumes_to_the_same_weights(make_job: MakeJob, store: Store, tmp_path: Path) -> None:
    """A process that is killed with SIGKILL in its second stage is resumed by another one, and the weights equal an undisturbed process's."""
    settings = {"hyperparameters": LEARNS, "freeze": "staged", "protection": SHARED, "retained_margin": 100.0}
    files = []
    for name, killed in (("whole", False), ("killed", True)):
        path = tmp_path / f"{name}.json"
        write_job_file(path, msgspec.structs.replace(make_job("ner", **settings), id=name, snapshot_seconds=0.0))
        if killed:
            with subprocess.Popen([*RUN, str(path)], stdout=subprocess.PIPE) as process:
                assert process.stdout
                message = (from_line(line) for line in process.stdout)
                while not (store.root / "jobs" / name / SNAPSHOTS / "stage-1.safetensors").exists():
                    next(message)
                process.kill()
            assert process.returncode == -signal.SIGKILL
        done = subprocess.run([*RUN, str(path)], stdout=subprocess.PIPE, check=True, timeout=240)
        events = [from_line(line) for line in done.stdout.splitlines()]
        [published] = [event for event in events if isinstance(event, Published)] or [events[-1]]
        files.append((store.get(published.checkpoint_id).path / TRAINING_WEIGHTS).read_bytes())

    assert any('Stage "heads" resumes from its snapshot' in note for note in notes(events))
    assert files[0] == files[1]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "it is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "it is damaged"),
    "no tensors": (lambda path: path.write_bytes(b"\0" * 4096), "it is damaged"),
    "one bit flipped": (_flip, "it is damaged"),
    "another stage's": (lambda path: path.with_name("stage-1.safetensors").replace(path), "not those of this stage"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_snapshot_that_cannot_be_used_is_passed_over(
    damage: str, make_job: MakeJob, store: Store, undisturbed: Undisturbed, whole_snapshots: Path
) -> None:
    """If a snapshot cannot be used, its stage starts again with a note that says why, and the weights are the same."""
    expected, _ = undisturbed("stages")
    job = with_snapshots(training_of("stages", make_job))
    spoil, why = DAMAGES[damage]
    snapshots = shutil.copytree(whole_snapshots, store.root / "jobs" / job.id / SNAPSHOTS)
    spoil(snapshots / "stage-0.safetensors")

    resumed, events = weights(job)

    assert resumed == expected
    [message] = [note for note in notes(events) if note.startswith("Ignored the snapshot")]
    assert message.startswith('Ignored the snapshot of stage "heads": ')
    assert why in message


def test_a_snapshot_of_another_job_is_passed_over(make_job: MakeJob) -> None:
    """With another seed, another learning rate or other examples under the same id, training starts again."""
    first = msgspec.structs.replace(make_job("ner", hyperparameters=LEARNS, freeze="backbone"), snapshot_seconds=0.0)
    assert killed_after(2, first)
    others = [
        with_request(first, seed=1),
        with_request(first, hyperparameters=msgspec.structs.replace(LEARNS, head_learning_rate=2e-2)),
        make_job("ner", hyperparameters=LEARNS, freeze="backbone", train=tiny_models.restaurant(70)),
    ]
    for second in others:
        _, events = weights(second)
        [message] = [note for note in notes(events) if note.startswith("Ignored the snapshot")]
        assert "it belongs to another job" in message


def test_a_snapshot_that_cannot_be_written_stops_no_training(
    make_job: MakeJob, store: Store, undisturbed: Undisturbed
) -> None:
    """Training continues to the same weights, and one note says that a restart would lose progress."""
    expected, _ = undisturbed("shared")
    job = with_snapshots(training_of("shared", make_job), "full")
    directory = store.root / "jobs" / job.id
    directory.mkdir(parents=True)
    (directory / SNAPSHOTS).write_text("in the way")

    trained, events = weights(job)

    assert trained == expected
    [message] = [note for note in notes(events) if "Cannot write snapshots" in note]
    assert "File exists" in message


def test_snapshots_are_rare_and_cheap(tmp_path: Path) -> None:
    """Snapshots are written at most once per interval, and less often if writing is slow; NO_SNAPSHOTS writes none."""
    now = [100.0]
    cost = 0.0
    written: list[float] = []

    class Slow(ResumeSnapshots):
        def _write(self, *_: Any) -> None:
            now[0] += cost
            written.append(now[0])

    snapshots = Slow(tmp_path, "x", 10.0, clock=lambda: now[0])
    for seconds, expected in ((9, 0), (1, 1), (9, 1), (1, 2)):
        now[0] += seconds
        assert not list(snapshots.save_if_due(0, lambda: None))
        assert len(written) == expected
    cost = 2.0
    now[0] += 10.0
    list(snapshots.save_if_due(0, lambda: None))
    for seconds, expected in ((39.0, 3), (1.0, 4)):
        now[0] += seconds
        list(snapshots.save_if_due(0, lambda: None))
        assert len(written) == expected
    assert not list(NO_SNAPSHOTS.save_if_due(0, lambda: None))


def test_a_short_job_writes_no_snapshot(make_job: MakeJob, store: Store) -> None:
    """A job that ends before the first snapshot is due writes none."""
    tiny_models.until(
        make_job("ner", hyperparameters=LEARNS, freeze="backbone", id="quick", snapshot_seconds=3600.0), "export"
    )

    assert not (store.root / "jobs" / "quick" / SNAPSHOTS).exists()


def test_a_resumed_trainer_past_its_deadline_keeps_the_best_state(make_job: MakeJob) -> None:
    """A trainer that resumes after the deadline keeps the best state of the snapshots instead of the base."""
    job = with_snapshots(training_of("shared", make_job), "late")
    untrained, _ = weights(msgspec.structs.replace(with_request(job, max_runtime=1e-9), id="never"))
    assert not killed_after(99, job)
    trained, _ = weights(job)
    late, events = weights(with_request(job, max_runtime=1e-9))

    assert late == trained != untrained
    assert [event.phase for event in events if isinstance(event, PhaseStarted)][-1] == "evaluate"

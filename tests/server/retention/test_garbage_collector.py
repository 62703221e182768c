"""Retention: what exceeds the limits is deleted; what is in use, or may soon be, is kept."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from server.jobs.test_model import first
from support.scripted_trainer import HANG, INLINE, SPEC, TRAIN, Harness, add_checkpoint, finish, over, runs, until
from twofold_checkpoint.store import Aliases
from twofold_server.adaptation.runner import JobRunner
from twofold_server.adaptation.uploads import ExampleBatch
from twofold_server.errors import FailedPreconditionError, UnknownNameError
from twofold_server.inference.slot import Slot
from twofold_server.jobs.model import Job, JobState
from twofold_server.retention.deletion import Deleter
from twofold_server.retention.garbage_collector import GarbageCollector
from twofold_server.retention.policy import GRACE_SECONDS, Retained, expired, needed_checkpoints

NOW = 1e9
HOUR = GRACE_SECONDS
FIVE = [Retained(name, NOW - hours * HOUR) for name, hours in (("e", 1), ("d", 2), ("c", 3), ("b", 4), ("a", 5))]
DECISIONS: list[tuple[int, set[str], list[Retained], list[str]]] = [
    (0, set(), FIVE, []),
    (1, set(), FIVE, ["a", "b", "c", "d"]),
    (3, set(), FIVE, ["a", "b"]),
    (5, set(), FIVE, []),
    (9, set(), FIVE, []),
    (3, {"a"}, FIVE, ["b"]),
    (1, {"e"}, FIVE, ["a", "b", "c"]),
    (1, {"a", "b", "c", "d", "e"}, FIVE, []),
    (1, {"elsewhere"}, FIVE[:1], []),
    (1, set(), [*FIVE[:2], Retained("young", NOW - HOUR + 1)], ["d"]),
    (1, set(), [Retained("young", NOW), Retained("younger", NOW), Retained("of tomorrow", NOW + HOUR)], []),
    (1, set(), [Retained("y", 0), Retained("x", 0)], ["x"]),
    (1, set(), [], []),
]


@pytest.mark.parametrize(("keep", "needed", "kept", "gone"), DECISIONS)
def test_the_oldest_that_nothing_needs_go(keep: int, needed: set[str], kept: list[Retained], gone: list[str]) -> None:
    """The newest, the needed and the recent are kept; a limit of 0 keeps all."""
    assert expired(kept, keep=keep, needed=needed, now=NOW) == gone


ALIASES = Aliases(current="cu", previous="pr", candidate="ca", approved="ap")


def job(base: str, resolved: str = "", candidate: str = "") -> Job:
    """Return a job that builds on a checkpoint."""
    spec = msgspec.structs.replace(first().spec, base=base)
    return msgspec.structs.replace(first(), spec=spec, base=resolved, candidate=candidate)


REQUIRED_SCOPES: list[tuple[list[Job], Aliases, str | None, set[str]]] = [
    ([], Aliases(), None, set()),
    ([], ALIASES, None, {"cu", "pr", "ca", "ap"}),
    ([], ALIASES, "live", {"cu", "pr", "ca", "ap", "live"}),
    ([job("x")], Aliases(), None, {"x"}),
    ([job("current", "old")], Aliases(current="new"), None, {"old", "new"}),
    ([job("candidate", "old")], Aliases(), None, {"old"}),
    ([job("x", "x", "made"), job("y")], Aliases(), None, {"x", "y", "made"}),
]


@pytest.mark.parametrize(("jobs", "aliases", "live", "needed"), REQUIRED_SCOPES)
def test_needed_checkpoints(jobs: list[Job], aliases: Aliases, live: str | None, needed: set[str]) -> None:
    """Needed are all aliases, the live checkpoint, and the bases and candidates of unfinished jobs."""
    assert needed_checkpoints(jobs, aliases, live) == needed


def collector(harness: Harness, runner: JobRunner) -> GarbageCollector:
    """Return a garbage collector of a harness."""
    slot = Slot(harness.metrics)
    deleter = Deleter(harness.store, slot, runner.jobs)
    return GarbageCollector(
        settings=harness.config.retention,
        store=harness.store,
        slot=slot,
        jobs=runner.jobs,
        deleter=deleter,
        metrics=harness.metrics,
    )


def age(path: Path, hours: float) -> None:
    """Set the age of a directory."""
    moment = time.time() - hours * HOUR
    os.utime(path, (moment, moment))


def names(path: Path) -> set[str]:
    """Return the names in a directory."""
    return {item.name for item in path.iterdir()}


async def test_retention_keeps_what_jobs_need(harness: Harness) -> None:
    """Beyond the limits the oldest are deleted and counted; current and the base of the running job are kept."""
    harness.set(keep_checkpoints=1, keep_uploads=1)
    harness.play(TRAIN, HANG)
    for number in range(4):
        add_checkpoint(harness.store, f"c{number}")
        age(harness.store.root / "checkpoints" / f"c{number}", 9 - number)
    age(harness.store.root / "checkpoints" / "first", 99)
    uploads = harness.store.root / "uploads"

    async with harness.running() as runner:
        running = await runner.submit(msgspec.structs.replace(SPEC, base="c0"), INLINE)
        await until(runner, running.id, runs)
        for number in range(3):
            (uploads / f"upload-{number}").mkdir(parents=True)
            age(uploads / f"upload-{number}", 9 - number)
        await collector(harness, runner).collect()
        assert (await runner.jobs.get(running.id)).state is JobState.RUNNING
    assert names(harness.store.root / "checkpoints") == {"first", "c0", "c3"}
    assert names(uploads) == {"upload-2"}
    assert names(harness.store.root / "staging") == set()
    counts = {kind: harness.metric("twofold_collected_total", kind=kind) for kind in ("checkpoint", "upload", "job")}
    assert counts == {"checkpoint": 2, "upload": 2, "job": 0}


async def test_uploads_and_bases_of_unfinished_jobs_are_kept(harness: Harness) -> None:
    """Uploads and bases of running and queued jobs are kept until the jobs are over, however old they are."""
    harness.set(keep_uploads=1, keep_checkpoints=1)
    harness.play(TRAIN, ("wait", "go-on"), finish())
    for name in ("old-0", "old-1", "newer", "newest"):
        add_checkpoint(harness.store, name)

    async def data() -> AsyncIterator[ExampleBatch]:
        yield ExampleBatch("train", INLINE.train)

    async with harness.running() as runner:
        ids = [(await harness.uploads.receive(data())).id for _ in range(4)]
        for number, upload in enumerate(ids):
            age(harness.store.root / "uploads" / upload, 9 - number)
        for number, name in enumerate(("old-0", "old-1", "newer", "newest")):
            age(harness.store.root / "checkpoints" / name, 9 - number)
        jobs = []
        for number in range(2):
            spec = msgspec.structs.replace(SPEC, base=f"old-{number}", upload_id=ids[number])
            jobs.append(await runner.submit(spec))
        await until(runner, jobs[0].id, runs)
        await collector(harness, runner).collect()
        assert names(harness.store.root / "uploads") == {ids[0], ids[1], ids[3]}
        assert names(harness.store.root / "checkpoints") == {"first", "old-0", "old-1", "newest"}

        (harness.store.root / "go-on").touch()
        for job in jobs:
            assert (await over(runner, job.id)).state is JobState.SUCCEEDED
        await collector(harness, runner).collect()
        assert names(harness.store.root / "uploads") == {ids[3]}
        assert names(harness.store.root / "checkpoints") == {"first", "newest"}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_jobs_go_with_all_that_is_theirs(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest finished jobs are deleted with their events and files; a running job is not."""
    monkeypatch.setattr("twofold_server.retention.policy.GRACE_SECONDS", 0.0)
    harness.set(keep_jobs=1)

    async with harness.running() as runner:
        ids = [(await runner.submit(SPEC, INLINE)).id for _ in range(3)]
        for item in ids:
            await over(runner, item)
        harness.play(TRAIN, HANG)
        running = await runner.submit(SPEC, INLINE)
        await until(runner, running.id, runs)
        await collector(harness, runner).collect()

        assert [view.id for view in (await runner.jobs.page(9, None))[0]] == [running.id, ids[2]]
        assert names(harness.store.root / "jobs") == {running.id, ids[2]}
        assert [record async for record in runner.jobs.watch(ids[2])]
        with pytest.raises(UnknownNameError):
            await runner.jobs.get(ids[0])
        with pytest.raises(FailedPreconditionError, match="is running"):
            await runner.jobs.delete(running.id)
        harness.play(finish())
    assert harness.metric("twofold_collected_total", kind="job") == 2


async def test_without_limits_nothing_is_deleted(harness: Harness) -> None:
    """By default everything is kept, however old."""
    add_checkpoint(harness.store, "old")
    age(harness.store.root / "checkpoints" / "old", 9999)

    async with harness.running() as runner:
        assert not collector(harness, runner).has_limits
        await collector(harness, runner).collect()
    assert names(harness.store.root / "checkpoints") == {"first", "old"}

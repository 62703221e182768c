"""One job at a time, from the queue to its end, with real processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from server.adaptation.scripted import HANG, INLINE, House, add_checkpoint, finish, over, runs, say, until
from twofold_checkpoint.errors import CheckpointNotFoundError
from twofold_checkpoint.events import Judged, PhaseStarted, ScoreMeasured
from twofold_checkpoint.job import Exact, Hyperparameters
from twofold_server.errors import (
    ConflictError,
    InvalidRequestError,
    NotServingError,
    OverloadedError,
    SwapError,
    UnknownNameError,
    WrongStateError,
)
from twofold_server.job_table import JobTable
from twofold_server.jobs import JobState, Order, PhaseEnded, StateEntered, fold

ORDER = Order(head="classifier")
TRAIN = say(PhaseStarted(phase="train"))

ENDINGS: list[tuple[str, list[tuple[str, Any]], JobState, str]] = [
    ("success", [finish("succeeded", "All is well.")], JobState.SUCCEEDED, "All is well."),
    ("refusal", [finish("rejected", "Not published: it is worse.")], JobState.REJECTED, "Not published: it is worse."),
    ("failure", [finish("failed", "There is no data.")], JobState.FAILED, "There is no data."),
    ("failure without a reason", [finish("failed", "")], JobState.FAILED, "did not say why"),
    ("somebody else's SIGTERM", [("kill", signal.SIGTERM)], JobState.FAILED, "Asked to stop"),
    ("no last word", [TRAIN, ("exit", 0)], JobState.FAILED, "exit code 0"),
    (
        "a traceback",
        [("stderr", "ImportError: no torch"), ("exit", 1)],
        JobState.FAILED,
        "code 1: ImportError: no torch.",
    ),
    ("out of memory", [("kill", signal.SIGKILL)], JobState.FAILED, "-9 (killed; out of memory?)"),
    ("a crash in native code", [("kill", signal.SIGSEGV)], JobState.FAILED, "-11 (Segmentation fault)"),
    ("words after the last one", [finish(), TRAIN, ("exit", 3)], JobState.SUCCEEDED, "It went well."),
]


@pytest.mark.parametrize(
    ("actions", "state", "reason"), [case[1:] for case in ENDINGS], ids=[case[0] for case in ENDINGS]
)
def test_every_ending_has_its_state_and_a_sentence(
    house: House, actions: list[tuple[str, Any]], state: JobState, reason: str
) -> None:
    """However the trainer ends, the job ends in the right state, with a reason, and serving is left alone."""
    house.play(*actions)

    view = house.run()

    assert view.state is state
    assert reason in view.reason
    assert all(phase.ended for phase in view.phases)
    assert house.promoter.promoted == []
    assert house.metric("twofold_jobs_total", state=state.value) == 1
    assert house.metric("twofold_jobs_running") == 0


def test_a_trainer_that_cannot_start_says_so(house: House) -> None:
    """A wrong interpreter fails the job and names it."""
    house.set(trainer_python="/nowhere/python")

    view = house.run()

    assert view.state is JobState.FAILED
    assert "could not be started" in view.reason
    assert "/nowhere/python" in view.reason


def test_lines_that_are_no_events_are_passed_over(house: House) -> None:
    """Malformed and endless lines become warnings, the first few of them, and the job goes on."""
    long = ("say", "x" * (2**20 + 5))
    house.play(("say", "hello"), long, *[("say", '{"event": "Unheard"}')] * 30, TRAIN, finish())

    view = house.run()

    assert view.state is JobState.SUCCEEDED
    assert view.phase == "train"
    assert len(view.report.notes) == 5
    assert "more than 1048576 bytes" in view.report.notes[1]


def test_a_flood_of_events_is_kept_in_order(house: House) -> None:
    """Hundreds of events at once arrive whole, in order, and numbered without a gap."""
    house.play(("flood", 500), finish())

    async def story() -> list[int]:
        async with house.running() as runner:
            view = await runner.submit(ORDER, INLINE)
            records = [one async for one in runner.book.watch(view.id)]
            assert [one.sequence for one in records] == list(range(1, len(records) + 1))
            return [int(one.said.message) for one in records if hasattr(one.said, "message")]

    assert asyncio.run(story()) == list(range(500))


@pytest.mark.parametrize("last", [[finish()], []], ids=["after its last word", "without one"])
def test_a_trainer_that_falls_silent_does_not_stay(house: House, last: list[tuple[str, Any]]) -> None:
    """A trainer that says nothing more and does not end is killed after the grace; its last word counts."""
    house.grace = 0.3
    house.play(TRAIN, *last, ("silence", 0), ("ignore", 0), HANG)

    view = house.run()

    assert view.state is (JobState.SUCCEEDED if last else JobState.FAILED)
    assert psutil.Process().children() == []


def test_what_the_trainer_starts_ends_with_it(house: House) -> None:
    """A grandchild that holds the pipes open is ended with the trainer and holds nothing up."""
    house.play(("spawn", 0), ("exit", 1))
    begun = time.monotonic()

    assert house.run().state is JobState.FAILED

    child = int((house.store.root / "child").read_text(encoding="ascii"))
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - begun < 10


def test_the_trainer_gets_the_job_its_threads_and_no_secrets(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The trainer is niced, reads the order as given, has its thread budget, and sees no variable it does not need."""
    monkeypatch.setenv("TWOFOLD_SECRET", "x")
    monkeypatch.setenv("HF_HOME", "/models")
    house.play(("sleep", 0.3), ("environment", str(tmp_path / "seen")), finish())
    order = Order(
        head="ner",
        freeze="backbone",
        protection=Exact(),
        append_labels=False,
        annotated_types=("city",),
        hyperparameters=Hyperparameters(epochs=3, layer_decay=0.5),
        max_runtime=90.5,
        seed=-7,
        validate_only=True,
    )

    view = house.run(order)

    environment, niceness, job = msgspec.json.decode((tmp_path / "seen").read_bytes())
    assert "TWOFOLD_SECRET" not in environment
    assert (environment["HF_HOME"], environment["OMP_NUM_THREADS"]) == ("/models", "3")
    assert niceness == 10
    for name in ("head", "freeze", "append_labels", "max_runtime", "seed", "validate_only"):
        assert job[name] == getattr(order, name)
    assert (job["id"], job["base"], job["dev"]) == (view.id, "first", None)
    assert (job["protection"]["type"], job["annotated_types"]) == ("exact", ["city"])
    assert job["hyperparameters"] == {"epochs": 3, "layer_decay": 0.5}


# -- promotion ----------------------------------------------------------------------------------------------------


def publish() -> list[tuple[str, Any]]:
    """Train, measure, publish and end well."""
    judged = say(Judged(verdict="pass", reason="It is better."))
    return [TRAIN, judged, ("publish", "second"), finish("succeeded", "Published second.")]


@pytest.mark.parametrize(
    ("promote", "current", "candidate", "phases"),
    [
        ("auto", "second", None, ["train", "swap"]),
        ("manual", "first", "second", ["train"]),
        ("never", "first", None, ["train"]),
    ],
)
def test_a_candidate_goes_where_the_order_says(
    house: House, promote: Any, current: str, candidate: str | None, phases: list[str]
) -> None:
    """AUTO swaps before the job succeeds, MANUAL nominates, NEVER only publishes."""
    house.play(*publish())

    view = house.run(promote=promote)

    assert (view.state, view.candidate, view.reason) == (JobState.SUCCEEDED, "second", "Published second.")
    assert (house.store.aliases().current, house.store.aliases().candidate) == (current, candidate)
    assert [phase.name for phase in view.phases] == phases
    assert view.report.swap_seconds == (0.25 if promote == "auto" else 0)


@pytest.mark.parametrize("error", [SwapError("golden text differs"), CheckpointNotFoundError("gone"), KeyError("odd")])
def test_a_failed_swap_fails_the_job_and_leaves_the_candidate(house: House, error: Exception) -> None:
    """If the candidate cannot be made live, the job says so, the old checkpoint serves, and the alias finds it."""
    house.play(*publish())
    house.promoter.fails = error

    view = house.run()

    assert view.state is JobState.FAILED
    assert "second was published but is not live" in view.reason
    assert (house.store.aliases().current, house.store.aliases().candidate) == ("first", "second")


def test_a_candidate_is_not_promoted_over_what_it_was_not_compared_with(house: House) -> None:
    """If current moved while the job trained, by a rollback for one, the candidate waits for a person."""
    house.play(TRAIN, ("sleep", 0.5), *publish())
    add_checkpoint(house.store, "other")

    async def story() -> None:
        async with house.running() as runner:
            view = await runner.submit(ORDER, INLINE)
            await until(runner, view.id, runs)
            house.store.promote("other")
            view = await over(runner, view.id)
            assert view.state is JobState.FAILED
            assert "current moved from first to other" in view.reason

    asyncio.run(story())
    assert (house.store.aliases().current, house.store.aliases().candidate) == ("other", "second")


def test_a_queued_job_starts_from_what_is_current_then(house: House) -> None:
    """Two jobs that follow one another build on one another: the alias is resolved when the job starts."""

    async def story() -> None:
        async with house.running() as runner:
            house.play(TRAIN, ("sleep", 0.3), *publish()[1:])
            first = await runner.submit(ORDER, INLINE)
            await until(runner, first.id, runs)
            second = await runner.submit(ORDER, INLINE)
            assert (second.base, second.queue_position) == ("first", 0)
            house.play(finish())
            assert (await over(runner, first.id)).state is JobState.SUCCEEDED
            assert (await over(runner, second.id)).base == "second"

    asyncio.run(story())


# -- cancelling and stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignores", [False, True], ids=["polite", "deaf to SIGTERM"])
def test_a_running_job_is_cancelled_once_its_trainer_is_gone(house: House, ignores: bool) -> None:
    """CancelJob returns when the process has ended, by force if need be; a second call finds the job over."""
    house.grace = 0.5
    house.play(*([("ignore", 0)] if ignores else []), TRAIN, HANG)

    async def story() -> None:
        async with house.running() as runner:
            view = await runner.submit(ORDER, INLINE)
            await until(runner, view.id, runs)
            assert runner.is_running
            trainers = psutil.Process().children()
            view = await asyncio.wait_for(runner.cancel(view.id), 10)
            assert (view.state, view.reason) == (JobState.CANCELLED, "CancelJob was called while the job ran.")
            assert not any(one.is_running() for one in trainers)
            with pytest.raises(WrongStateError, match="already over: cancelled"):
                await runner.cancel(view.id)

    asyncio.run(story())


def test_a_waiting_job_is_cancelled_at_once(house: House) -> None:
    """A job that waits ends without a trainer, and the one that runs goes on."""
    house.play(TRAIN, ("sleep", 0.5), finish())

    async def story() -> None:
        async with house.running() as runner:
            first = await runner.submit(ORDER, INLINE)
            second = await runner.submit(ORDER, INLINE)
            view = await runner.cancel(second.id)
            assert (view.state, view.started, view.phases) == (JobState.CANCELLED, None, ())
            assert (await over(runner, first.id)).state is JobState.SUCCEEDED

    asyncio.run(story())


def test_a_job_is_cancelled_at_any_moment(house: House) -> None:
    """Cancelled right after it was made, while its process starts: it ends as cancelled, and the queue goes on."""

    async def story() -> None:
        async with house.running() as runner:
            for delay in (0.0, 0.002, 0.01, 0.03):
                house.play(HANG)
                view = await runner.submit(ORDER, INLINE)
                await asyncio.sleep(delay)
                view = await asyncio.wait_for(runner.cancel(view.id), 10)
                assert view.state is JobState.CANCELLED
            house.play(finish())
            view = await runner.submit(ORDER, INLINE)
            assert (await over(runner, view.id)).state is JobState.SUCCEEDED

    asyncio.run(story())


def test_a_swap_is_not_cancelled_half_way(house: House) -> None:
    """Once the swap has begun the job is carried to its end, and CancelJob says that it came too late."""
    house.play(*publish())

    async def story() -> None:
        house.promoter.hold = asyncio.Event()
        async with house.running() as runner:
            view = await runner.submit(ORDER, INLINE)
            await until(runner, view.id, lambda view: view.phase == "swap")
            cancelling = asyncio.create_task(runner.cancel(view.id))
            await asyncio.sleep(0.05)
            house.promoter.hold.set()
            with pytest.raises(WrongStateError, match="ended before it could be cancelled: succeeded"):
                await cancelling

    asyncio.run(story())
    assert house.store.aliases().current == "second"


def test_stopping_the_server_ends_the_running_job_and_keeps_the_others(house: House) -> None:
    """The running job fails with the reason; a waiting one runs when the server is back; watchers are told."""
    house.play(TRAIN, HANG)

    async def before() -> tuple[str, str]:
        async with house.running() as runner:
            first = await runner.submit(ORDER, INLINE)
            second = await runner.submit(ORDER, INLINE)
            await until(runner, first.id, runs)

            async def watch() -> None:
                async for _ in runner.book.watch(second.id):
                    pass

            watching = asyncio.create_task(watch())
            await asyncio.sleep(0.05)
        with pytest.raises(NotServingError):
            await watching
        return first.id, second.id

    async def after(first: str, second: str) -> None:
        house.play(finish())
        async with house.running() as runner:
            view = await runner.book.get(first)
            assert view.state is JobState.FAILED
            assert "server was stopped" in view.reason
            assert (await over(runner, second)).state is JobState.SUCCEEDED

    asyncio.run(after(*asyncio.run(before())))


@pytest.mark.parametrize(
    ("promoted", "state", "reason"),
    [
        (False, JobState.FAILED, "The server died while the job ran. second was published and waits"),
        (True, JobState.SUCCEEDED, "made current just before the server died"),
    ],
)
def test_a_job_that_ran_when_the_server_died_gets_its_end(
    house: House, promoted: bool, state: JobState, reason: str
) -> None:
    """After a restart no job is left running: it has failed, or its candidate answers by now."""
    house.play(*publish())
    view = house.run(promote="auto")
    if not promoted:
        house.store.promote("first")
    with sqlite3.connect(house.store.root / "jobs.sqlite3") as connection:  # As if its last event had not been written.
        dead = msgspec.structs.replace(view, state=JobState.RUNNING, ended=None, reason="")
        connection.execute("UPDATE jobs SET state = 'running', view = ?", (msgspec.json.encode(dead),))
    connection.close()

    async def story() -> None:
        async with house.running() as runner:
            ended = await runner.book.get(view.id)
            assert ended.state is state
            assert reason in ended.reason

    asyncio.run(story())


_VICTIM = """
import asyncio, sys, pathlib
from server.adaptation.scripted import House, INLINE, until, runs
from twofold_server.jobs import Order
house = House(pathlib.Path(sys.argv[1]))
house.play(("say", '{"event": "PhaseStarted", "phase": "train"}'), ("sleep", 60))
async def story():
    async with house.running() as runner:
        first = await runner.submit(Order(head="ner"), INLINE)
        second = await runner.submit(Order(head="ner"), INLINE)
        await until(runner, first.id, runs)
        print(first.id, second.id, flush=True)
        await asyncio.sleep(60)
asyncio.run(story())
"""


def test_a_server_that_is_killed_leaves_nothing_but_its_queue(tmp_path: Path) -> None:
    """After SIGKILL the running job has failed and its trainer is gone, and the waiting job runs."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _VICTIM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as victim:
        assert victim.stdout
        first, second = victim.stdout.readline().split()
        [trainer] = psutil.Process(victim.pid).children()
        victim.kill()

    async def story() -> None:
        house = House(tmp_path)
        async with house.running() as runner:
            view = await runner.book.get(first)
            assert (view.state, view.phase, view.reason) == (
                JobState.FAILED,
                "train",
                "The server died while the job ran.",
            )
            assert (await over(runner, second)).state is JobState.SUCCEEDED
            assert not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE

    asyncio.run(story())


def test_two_servers_do_not_share_the_jobs_of_a_store(house: House) -> None:
    """A second runner over the same store is refused: it would take the first one's job for a dead one."""

    async def story() -> None:
        async with house.running():
            with pytest.raises(WrongStateError, match="another server runs the jobs"):
                await house.make().start()

    asyncio.run(story())


def test_a_job_whose_events_cannot_be_stored_fails_and_the_queue_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ends the job and its trainer with the reason, also when its end cannot be written at first."""
    house.play(TRAIN, HANG)
    monkeypatch.setattr("twofold_server.runner._RETRY_SECONDS", 0.05)
    tell, failures = JobTable.say, iter(range(3))

    def full(table: JobTable, job_id: str, said: Any, now: Any) -> Any:
        if isinstance(said, PhaseStarted | StateEntered) and next(failures, None) is not None:
            raise sqlite3.OperationalError("database or disk is full")
        return tell(table, job_id, said, now)

    monkeypatch.setattr(JobTable, "say", full)

    async def story() -> None:
        async with house.running() as runner:
            view = await over(runner, (await runner.submit(ORDER, INLINE)).id)
            assert (view.state, view.reason) == (JobState.FAILED, "database or disk is full.")
            assert psutil.Process().children() == []
            house.play(finish())
            assert (await over(runner, (await runner.submit(ORDER, INLINE)).id)).state is JobState.SUCCEEDED

    asyncio.run(story())


# -- the queue ----------------------------------------------------------------------------------------------------


def test_jobs_run_one_at_a_time_in_order(house: House) -> None:
    """Jobs start in the order of their making, each after the end of the one before; positions count down."""
    house.play(TRAIN, ("sleep", 0.1), finish())

    async def story() -> None:
        async with house.running() as runner:
            ids = [(await runner.submit(ORDER, INLINE)).id for _ in range(4)]
            await until(runner, ids[0], runs)
            assert [(await runner.book.get(one)).queue_position for one in ids] == [0, 0, 1, 2]
            assert house.metric("twofold_jobs_queued") == 3
            views = [await over(runner, one) for one in ids]
            for earlier, later in itertools.pairwise(views):
                assert earlier.ended <= later.started
            listed, more = await runner.book.page(3, None)
            assert [one.id for one in listed] == ids[:0:-1]
            listed, more = await runner.book.page(3, more)
            assert ([one.id for one in listed], more) == (ids[:1], None)

    asyncio.run(story())


def test_a_full_queue_refuses_and_keeps_nothing(house: House) -> None:
    """A job too many is refused with a time to come back, and leaves no files."""
    house.set(max_queued_jobs=1)
    house.play(TRAIN, HANG)

    async def story() -> None:
        async with house.running() as runner:
            first = await runner.submit(ORDER, INLINE)
            await until(runner, first.id, runs)
            await runner.submit(ORDER, INLINE)
            with pytest.raises(OverloadedError) as caught:
                await runner.submit(ORDER, INLINE)
            assert caught.value.retry_after > 0
            assert len(list((house.store.root / "jobs").iterdir())) == 2

    asyncio.run(story())


def test_a_request_id_makes_one_job(house: House) -> None:
    """The same request finds its job, also after a restart and when the base is gone; another request is refused."""
    order = Order(head="classifier", request_id="r1")
    other = Order(head="classifier", request_id="r1", seed=1)

    async def story() -> str:
        async with house.running() as runner:
            views = await asyncio.gather(*(runner.submit(order, INLINE) for _ in range(5)))
            assert len({view.id for view in views}) == 1
            assert len(list((house.store.root / "jobs").iterdir())) == 1
            with pytest.raises(ConflictError, match="r1"):
                await runner.submit(other, INLINE)
            await over(runner, views[0].id)
            return views[0].id

    async def again(job_id: str) -> None:
        (house.store.root / "aliases.json").unlink()
        async with house.running() as runner:
            view = await runner.submit(order, INLINE)
            assert (view.id, view.state) == (job_id, JobState.SUCCEEDED)

    asyncio.run(again(asyncio.run(story())))


@pytest.mark.parametrize(
    ("order", "error", "names"),
    [
        (Order(head="classifier", base="none"), CheckpointNotFoundError, "none"),
        (Order(head="classifier", base="../first"), CheckpointNotFoundError, "../first"),
        (Order(head="ner", annotated_types=("town",)), InvalidRequestError, "dataset.inline.train[1].entities[0].type"),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits(
    house: House, order: Order, error: type[Exception], names: str
) -> None:
    """A wrong base or data set is an answer to the call, not a failed job, and leaves no files."""

    async def story() -> None:
        async with house.running() as runner:
            with pytest.raises(error) as caught:
                await runner.submit(order, INLINE)
            assert names in str(caught.value)
            assert await runner.book.page(9, None) == ([], None)

    asyncio.run(story())
    assert list(house.store.root.glob("jobs/*")) == list(house.store.root.glob("staging/*")) == []


def test_a_caller_that_goes_away_leaves_whole_jobs_or_none(house: House) -> None:
    """Whenever a call is cancelled, each job that was made has its files, and no files are without a job."""
    house.set(max_queued_jobs=99)

    async def story() -> None:
        async with house.running() as runner:
            for delay in range(12):
                call = asyncio.create_task(runner.submit(ORDER, INLINE))
                await asyncio.sleep(delay / 1000)
                call.cancel()
            await asyncio.sleep(0.2)
            jobs, _ = await runner.book.page(99, None)
            assert sorted(job.id for job in jobs) == sorted(
                path.parent.name for path in house.store.root.glob("jobs/*/train.jsonl")
            )

    asyncio.run(story())
    assert list(house.store.root.glob("staging/*")) == []


# -- watching -----------------------------------------------------------------------------------------------------


def test_watchers_see_every_event_wherever_they_begin(house: House) -> None:
    """Past events are replayed from any number, live ones follow, and all watchers see the same until the last one."""
    score = ScoreMeasured(figure="new", moment="before", metric="f1", value=0.5, examples=9)
    house.play(TRAIN, say(score), ("sleep", 0.3), say(PhaseStarted(phase="gate")), finish())

    async def story() -> None:
        async with house.running() as runner:
            view = await runner.submit(ORDER, INLINE)

            async def watch(after: int, pause: float = 0.0) -> list[Any]:
                records = []
                async for one in runner.book.watch(view.id, after):
                    await asyncio.sleep(pause)
                    records.append(one)
                return records

            async with asyncio.timeout(20):
                everything, slow, late = await asyncio.gather(watch(0), watch(0, 0.05), watch(4))
                assert everything == slow == await watch(0)
                assert late == everything[4:] == await watch(4)
                assert await watch(everything[-1].sequence) == []
            ended = await runner.book.get(view.id)
            assert everything[-1].said == StateEntered(state=JobState.SUCCEEDED, reason="It went well.")
            assert ended.last_sequence == everything[-1].sequence
            assert [one.phase for one in everything if isinstance(one.said, PhaseEnded)] == ["train", "gate"]
            assert fold(view_at_first(ended), everything) == ended
            with pytest.raises(UnknownNameError, match="job-none"):
                await anext(runner.book.watch("job-none"))

    asyncio.run(story())
    assert house.metric("twofold_adaptation_score", figure="new", moment="before") == 0.5
    assert house.metric("twofold_job_phase_seconds_count", phase="train") == 1


def view_at_first(view: Any) -> Any:
    """Return a job as it was before its first event."""
    return type(view)(id=view.id, order=view.order, created=view.created, base="first")


def test_a_watcher_that_leaves_harms_nobody(house: House) -> None:
    """A cancelled watch ends neither the job nor the other watches."""
    house.play(TRAIN, ("sleep", 0.4), finish())

    async def story() -> None:
        async with house.running() as runner:
            view = await runner.submit(ORDER, INLINE)

            async def watch() -> int:
                return len([one async for one in runner.book.watch(view.id)])

            leaving, staying = asyncio.create_task(watch()), asyncio.create_task(watch())
            await until(runner, view.id, runs)
            leaving.cancel()
            assert await staying == (await over(runner, view.id)).last_sequence

    asyncio.run(story())

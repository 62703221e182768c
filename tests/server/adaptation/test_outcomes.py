"""How the end of a trainer becomes the end of its job, with real processes."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from support.job_specs import job_spec
from support.scripted_trainer import (
    HANG,
    INLINE,
    SPEC,
    TRAIN,
    Harness,
    finish,
)
from twofold_checkpoint.protocol.job import Exact, Hyperparameters, TrainingRequest
from twofold_server.jobs.model import JobState
from twofold_server.observability.logs import JsonFormatter

ENDINGS: list[tuple[str, list[tuple[str, Any]], JobState, str]] = [
    ("success", [finish("succeeded", "All is well.")], JobState.SUCCEEDED, "All is well."),
    ("refusal", [finish("rejected", "Not published: it is worse.")], JobState.REJECTED, "Not published: it is worse."),
    ("failure", [finish("failed", "There is no data.")], JobState.FAILED, "There is no data."),
    ("failure without a reason", [finish("failed", "")], JobState.FAILED, "failed without a reason"),
    ("somebody else's SIGTERM", [("kill", signal.SIGTERM)], JobState.FAILED, "Asked to stop"),
    ("no last word", [TRAIN, ("exit", 0)], JobState.FAILED, "exit code 0"),
    (
        "a traceback",
        [("stderr", "ImportError: no torch"), ("exit", 1)],
        JobState.FAILED,
        "code 1: ImportError: no torch.",
    ),
    ("out of memory", [("kill", signal.SIGKILL)], JobState.FAILED, "-9 (killed, possibly out of memory)"),
    ("a crash in native code", [("kill", signal.SIGSEGV)], JobState.FAILED, "-11 (Segmentation fault)"),
    ("words after the last one", [finish(), TRAIN, ("exit", 3)], JobState.SUCCEEDED, "It went well."),
]


@pytest.mark.parametrize(
    ("actions", "state", "reason"), [case[1:] for case in ENDINGS], ids=[case[0] for case in ENDINGS]
)
async def test_every_ending_has_its_state_and_a_sentence(
    harness: Harness, actions: list[tuple[str, Any]], state: JobState, reason: str
) -> None:
    """However the trainer ends, the job ends in the right state with a reason, and serving is unaffected."""
    harness.play(*actions)

    view = await harness.run()

    assert view.state is state
    assert reason in view.reason
    assert all(phase.ended for phase in view.phases)
    assert harness.promoter.promoted == []
    assert harness.metric("twofold_jobs_total", state=state.value) == 1
    assert harness.metric("twofold_jobs_running") == 0


async def test_a_trainer_that_cannot_start_fails_the_job(harness: Harness) -> None:
    """An invalid interpreter fails the job, and the reason names it."""
    harness.set(trainer_python="/nowhere/python")

    view = await harness.run()

    assert view.state is JobState.FAILED
    assert "could not be started" in view.reason
    assert "/nowhere/python" in view.reason


async def test_lines_that_are_no_events_are_passed_over(harness: Harness) -> None:
    """Malformed and overlong lines become warnings, at most the first few, and the job continues."""
    long = ("say", "x" * (2**20 + 5))
    harness.play(("say", "hello"), long, *[("say", '{"event": "Unheard"}')] * 30, TRAIN, finish())

    view = await harness.run()

    assert view.state is JobState.SUCCEEDED
    assert view.phase == "train"
    assert len(view.report.notes) == 5
    assert "more than 1048576 bytes" in view.report.notes[1]


async def test_a_flood_of_events_is_kept_in_order(harness: Harness) -> None:
    """Hundreds of events at once arrive complete, in order and numbered without a gap."""
    harness.play(("flood", 500), finish())

    async with harness.running() as runner:
        view = await runner.submit(SPEC, INLINE)
        records = [record async for record in runner.jobs.watch(view.id)]
        assert [record.sequence for record in records] == list(range(1, len(records) + 1))
        assert [int(record.event.message) for record in records if hasattr(record.event, "message")] == list(range(500))


@pytest.mark.parametrize("last", [[finish()], []], ids=["after its last word", "without one"])
async def test_a_silent_trainer_is_killed(harness: Harness, last: list[tuple[str, Any]]) -> None:
    """A trainer that is silent and does not exit is killed after the grace period; its last event counts."""
    harness.grace = 0.3
    harness.play(TRAIN, *last, ("silence", 0), ("ignore", 0), HANG)

    view = await harness.run()

    assert view.state is (JobState.SUCCEEDED if last else JobState.FAILED)
    assert psutil.Process().children() == []


async def test_children_of_the_trainer_end_with_it(harness: Harness) -> None:
    """A child of the trainer that holds the pipes open is killed with it and delays nothing."""
    harness.play(("spawn", 0), ("exit", 1))
    started_at = time.monotonic()

    assert (await harness.run()).state is JobState.FAILED

    child = int((harness.store.root / "child").read_text(encoding="ascii"))
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - started_at < 10


NICENESS = {
    "last": (19, (19, True, "19")),
    "a step back": (5, (5, False, "5")),
    "as the server": (0, (0, False, "0")),
}


@pytest.mark.parametrize("name", NICENESS)
async def test_a_trainer_has_the_configured_priority(harness: Harness, tmp_path: Path, name: str) -> None:
    """The trainer's niceness, scheduling policy and autogroup niceness are those of the setting."""
    requested, expected = NICENESS[name]
    harness.set(trainer_niceness=requested)
    harness.play(("sleep", 0.3), ("environment", str(tmp_path / "seen")), finish())

    await harness.run()

    _, (niceness, idle, group), _ = msgspec.json.decode((tmp_path / "seen").read_bytes())
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert (niceness, idle) == (min(19, own + expected[0]), expected[1])
    assert group is None or group.rpartition("nice ")[2].strip() == expected[2]


async def test_the_trainer_gets_the_job_its_threads_and_no_secrets(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The trainer reads the request unchanged, has its thread budget, and sees no variable that it does not need."""
    monkeypatch.setenv("TWOFOLD_SECRET", "x")
    monkeypatch.setenv("HF_HOME", "/models")
    harness.play(("sleep", 0.3), ("environment", str(tmp_path / "seen")), finish())
    spec = job_spec(
        head="ner",
        freeze="backbone",
        protection=Exact(),
        label_policy="fixed",
        annotated_types=("city",),
        hyperparameters=Hyperparameters(epochs=3, layer_decay=0.5),
        max_runtime=90.5,
        seed=-7,
        validate_only=True,
    )

    view = await harness.run(spec)

    environment, _, job = msgspec.json.decode((tmp_path / "seen").read_bytes())
    assert "TWOFOLD_SECRET" not in environment
    assert (environment["HF_HOME"], environment["OMP_NUM_THREADS"]) == ("/models", "3")
    assert (job["id"], job["base"], job["dev"]) == (view.id, "first", None)
    assert msgspec.convert(job["request"], TrainingRequest) == spec.request


TEXT = "my card is 4111 1111"
QUOTING: dict[str, list[tuple[str, Any]]] = {
    "a reason": [finish("failed", f"The example {TEXT!r} is wrong.")],
    "a last line of stderr": [("stderr", f"ValueError: {TEXT}"), ("exit", 1)],
    "a line that is no event": [("say", TEXT), finish()],
}


@pytest.mark.parametrize("kind", QUOTING)
async def test_quoted_texts_are_not_logged(kind: str, harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """A text in a trainer's output is visible to those who may see the job; the log has it at level DEBUG only."""
    caplog.set_level(logging.DEBUG, "twofold_server")
    harness.play(TRAIN, *QUOTING[kind])

    await harness.run()

    lines = [(record.levelno, JsonFormatter().format(record)) for record in caplog.records]
    assert {level for level, line in lines if TEXT in line} == {logging.DEBUG}
    assert any('"message":"job ended"' in line for level, line in lines if level == logging.INFO)

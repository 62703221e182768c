"""Orphaned trainers of a dead server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twofold_server.adaptation.launchers.subprocess import SubprocessLauncher
from twofold_server.config.settings import TrainerSettings

pytestmark = pytest.mark.slow

JOB = "job-20260101T000000-00000000"
WAITS = "import time; time.sleep(600)"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A function that starts processes; they end with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_only_the_trainer_of_this_store_and_job_is_killed(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """Only the trainer of this store and job is killed, whatever its path looks like; trainers of other jobs and of copies of the store survive."""
    store = tmp_path / "store"
    for job in (JOB, "job-of-another"):
        (store / "jobs" / job).mkdir(parents=True)
        (store / "jobs" / job / "job.json").write_text("{}")
    copy = shutil.copytree(store, tmp_path / "copy")

    def start(order: Path | str, name: str = "twofold_trainer") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WAITS, name, "run", str(order)]
        started.append(subprocess.Popen(command, cwd=tmp_path, start_new_session=True))
        return started[-1]

    ours = [start(store / "jobs" / JOB / "job.json"), start(f"store/jobs/{JOB}/job.json")]
    others = [
        start(store / "jobs" / "job-of-another" / "job.json"),
        start(copy / "jobs" / JOB / "job.json"),
        start(f"copy/jobs/{JOB}/job.json"),
        start(store / "jobs" / JOB / "job.json", name="an_editor"),
    ]
    os.kill(ours[0].pid, signal.SIGSTOP)

    SubprocessLauncher(TrainerSettings(), store).kill_orphan(JOB)

    assert [process.wait(60) for process in ours] == [-signal.SIGKILL] * 2
    assert [process.poll() for process in others] == [None] * 4

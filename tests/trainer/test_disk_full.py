"""A trainer on a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from support import tiny_models
from support.small_disk import small_disk
from trainer.conftest import MakeJob
from twofold_checkpoint.protocol.events import NoteAdded
from twofold_checkpoint.protocol.job import Hyperparameters
from twofold_checkpoint.store import Store
from twofold_trainer.adapt import run_job

pytestmark = pytest.mark.slow


def test_a_disk_without_room_for_a_candidate_fails_the_job_and_no_more(
    make_job: MakeJob, store: Store, tmp_path: Path
) -> None:
    """Training continues without snapshots, with a note; the export fails the job with a reason, and the store stays unchanged."""
    probe = Hyperparameters(epochs=20, head_learning_rate=3e-2, patience=20)
    job = make_job("ner", freeze="backbone", hyperparameters=probe, retained_margin=100.0)
    with small_disk(tmp_path / "disk", 16) as disk:
        root = disk.path / "store"
        shutil.copytree(store.root, root)
        disk.fill(leave=64 * 1024)
        events, end = tiny_models.ending(run_job(msgspec.structs.replace(job, store=str(root), snapshot_seconds=0.0)))

        assert end.outcome == "failed"
        assert "No space left on device" in end.reason
        assert [checkpoint.id for checkpoint in Store(root).list()] == [checkpoint.id for checkpoint in store.list()]
        assert list((root / "staging").iterdir()) == []
        Store(root).get("current").verify()
    notes = [event.message for event in events if isinstance(event, NoteAdded)]
    assert sum("Cannot write snapshots" in note for note in notes) <= 1

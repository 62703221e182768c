"""Conversion of a job into the trainer's job file."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace
from twofold_checkpoint.protocol.job import TrainerJob

from twofold_server.jobs.directories import job_directory
from twofold_server.jobs.model import Job


def make_trainer_job(job: Job, base: str, root: Path, *, snapshot_seconds: float) -> TrainerJob:
    """Return the trainer's job for a job in the store at *root*."""
    upload_id = job.spec.upload_id
    folder = root / "uploads" / upload_id if upload_id else job_directory(root, job.id)
    dev = folder / "dev.jsonl"
    return TrainerJob(
        id=job.id,
        store=str(root),
        base=base,
        train=str(folder / "train.jsonl"),
        dev=str(dev) if dev.exists() else None,
        request=replace(job.spec.request, max_runtime=_remaining_seconds(job)),
        snapshot_seconds=snapshot_seconds,
    )


def _remaining_seconds(job: Job) -> float | None:
    """Return the remaining training time in seconds, at least 1, or None without a limit."""
    if job.spec.request.max_runtime is None:
        return None
    trained_seconds = sum((phase.ended - phase.started).total_seconds() for phase in job.phases if phase.ended)
    return max(1.0, job.spec.request.max_runtime - trained_seconds)

"""Conversion of a job into the trainer's job file."""

from __future__ import annotations

from pathlib import Path

from twofold_checkpoint.protocol.job import TrainerJob

from twofold_server.jobs.directories import job_directory
from twofold_server.jobs.model import Job


def make_trainer_job(job: Job, base: str, root: Path, *, snapshot_seconds: float) -> TrainerJob:
    """Return the trainer's job for a job in the store at *root*."""
    order = job.order
    folder = root / "uploads" / order.upload_id if order.upload_id else job_directory(root, job.id)
    dev = folder / "dev.jsonl"
    return TrainerJob(
        id=job.id,
        store=str(root),
        base=base,
        train=str(folder / "train.jsonl"),
        dev=str(dev) if dev.exists() else None,
        head=order.head,
        freeze=order.freeze,
        protection=order.protection,
        label_policy=order.label_policy,
        retained_margin=order.retained_margin,
        annotated_types=order.annotated_types,
        hyperparameters=order.hyperparameters,
        max_runtime=_remaining_seconds(job),
        memory=order.memory,
        seed=order.seed,
        validate_only=order.validate_only,
        snapshot_seconds=snapshot_seconds,
    )


def _remaining_seconds(job: Job) -> float | None:
    """Return the remaining training time in seconds, at least 1, or None without a limit."""
    if job.order.max_runtime is None:
        return None
    trained_seconds = sum((phase.ended - phase.started).total_seconds() for phase in job.phases if phase.ended)
    return max(1.0, job.order.max_runtime - trained_seconds)

"""Paths of job files."""

from __future__ import annotations

from pathlib import Path


def job_directory(root: Path, job_id: str) -> Path:
    """Return the directory of a job in the store at *root*."""
    return root / "jobs" / job_id

"""Validation of a job's settings before anything is read. Each error names the setting."""

from __future__ import annotations

from twofold_checkpoint.protocol.hyperparameter_ranges import RANGES
from twofold_checkpoint.protocol.job import Exact, Hyperparameters, TrainingRequest

from twofold_trainer.errors import RefusedError


def check_settings(request: TrainingRequest) -> None:
    """Raise RefusedError if a setting is out of range or contradicts another one."""
    if isinstance(request.protection, Exact) and request.freeze in {"head", "staged"}:
        raise RefusedError(
            f"protection: exact protection excludes freeze mode {request.freeze!r}, which trains the shared backbone; use freeze "
            "mode 'backbone' or 'auto', or statistical protection with a margin"
        )
    if not isinstance(request.protection, Exact) and not 0 <= request.protection.margin <= 100:
        raise RefusedError(f"protection.margin: {request.protection.margin:g} must be from 0 to 100 points")
    if request.max_runtime is not None and request.max_runtime <= 0:
        raise RefusedError(f"max_runtime: {request.max_runtime:g} s must be above 0; leave it out for no limit")
    if request.retained_margin is not None and not 0 <= request.retained_margin <= 100:
        raise RefusedError(f"retained_margin: {request.retained_margin:g} must be from 0 to 100 points")
    check_seed(request.seed)
    check_hyperparameters(request.hyperparameters)


def check_seed(seed: int) -> None:
    """Raise RefusedError if the seed is negative, which numpy's generators do not accept."""
    if seed < 0:
        raise RefusedError(f"seed: {seed} is negative; use 0 or more")


def check_hyperparameters(requested: Hyperparameters) -> None:
    """Raise RefusedError for the first setting that is outside its range."""
    for name, allowed in RANGES.items():
        value = getattr(requested, name)
        if value is not None and not allowed.holds(value):
            raise RefusedError(f"hyperparameters.{name}: {value:g} must be {allowed}")

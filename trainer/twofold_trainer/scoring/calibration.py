"""Compute the expected calibration error. This is a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twofold_trainer.errors import RefusedError


def expected_calibration_error(confidences: Sequence[float], right: Sequence[int], *, bins: int = 15) -> float | None:
    """Return the mean distance between confidence and accuracy, from 0 to 1; lower is better. None without answers.

    *confidences* and *right* contain one probability and one 0 or 1 per answer. The answers are divided into *bins* equal
    ranges of confidence, each without its lower end, and each range is weighted by its number of answers (Guo et al.
    2017, On Calibration of Modern Neural Networks). Raises RefusedError if the lengths differ or a value is out of range.
    """
    if bins < 1:
        raise RefusedError(f"bins is {bins}; use 1 or more")
    if len(confidences) != len(right):
        raise RefusedError(
            f"{len(confidences)} confidences do not match {len(right)} answers; pass one confidence for each answer"
        )
    confidence, hit = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    invalid = confidence[~((confidence >= 0) & (confidence <= 1))]
    if invalid.size:
        raise RefusedError(f"confidence {invalid[0]:g} is out of range; use a probability from 0 to 1")
    if not confidence.size:
        return None
    ranges = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(ranges, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / confidence.size)

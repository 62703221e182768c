"""Expected calibration error. A pure function; None means that there was nothing to measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twofold_trainer.errors import RefusedError


def expected_calibration_error(confidences: Sequence[float], right: Sequence[int], *, bins: int = 15) -> float | None:
    """Return the mean distance between confidence and accuracy, a share from 0 to 1; lower is better.

    *confidences* and *right* hold one probability and one 0 or 1 per answer. Answers are put into *bins* equal ranges
    of confidence, each excluding its lower end, and weighted by its number of answers: Guo et al. 2017, On
    Calibration of Modern Neural Networks. Raises RefusedError if they do not pair up or are out of range.
    """
    if bins < 1:
        raise RefusedError(f"bins is {bins}. Use 1 or more")
    if len(confidences) != len(right):
        raise RefusedError(
            f"there are {len(confidences)} confidences and {len(right)} answers. Give one for each answer"
        )
    sure, hit = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    strange = sure[~((sure >= 0) & (sure <= 1))]
    if strange.size:
        raise RefusedError(f"a confidence is {strange[0]:g}. Use a probability from 0 to 1")
    if not sure.size:
        return None
    places = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=hit - sure, minlength=bins)
    return float(np.abs(gaps).sum() / sure.size)

"""The calibration error compared with values computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twofold_trainer.errors import RefusedError
from twofold_trainer.scoring.calibration import expected_calibration_error


@pytest.mark.parametrize(
    ("confidences", "right", "bins", "error"),
    [
        ([1.0, 1.0, 1.0], [1, 1, 1], 15, 0.0),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0], 15, 0.25),
        ([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0], 15, 0.0),
        ([0.0], [1], 15, 1.0),
        ([0.3, 0.9], [0, 1], 2, (0.3 + 0.1) / 2),
        ([0.3, 0.9], [0, 1], 1, (1.2 - 1) / 2),
        # 0.5 belongs to the lower half: |2 - 1.1| and |1 - 1.9| of five answers.
        ([0.2, 0.4, 0.5, 0.9, 1.0], [1, 0, 1, 1, 0], 2, (0.9 + 0.9) / 5),
    ],
)
def test_the_error_is_the_weighted_distance(
    confidences: list[float], right: list[int], bins: int, error: float
) -> None:
    """The distance between mean confidence and accuracy in each range is weighted by the number of answers in it."""
    assert expected_calibration_error(confidences, right, bins=bins) == pytest.approx(error, abs=1e-12)


ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=60)


@given(ANSWERS, st.integers(1, 20), st.randoms())
def test_the_error_is_a_share_in_any_order(answers: list[tuple[float, int]], bins: int, shuffle: object) -> None:
    """The error is from 0 to 1, does not depend on the order, and is never less than that over a single range."""
    error = expected_calibration_error(*zip(*answers, strict=True), bins=bins)
    shuffled = list(answers)
    shuffle.shuffle(shuffled)

    assert 0 <= error <= 1
    assert expected_calibration_error(*zip(*shuffled, strict=True), bins=bins) == pytest.approx(error, abs=1e-12)
    assert error >= expected_calibration_error(*zip(*answers, strict=True), bins=1) - 1e-12


def test_without_answers_there_is_none() -> None:
    """Without answers the error is None, not 0."""
    assert expected_calibration_error([], []) is None


@pytest.mark.parametrize(
    ("confidences", "right", "bins", "message"),
    [
        ([0.5, 0.5], [1], 15, "2 confidences do not match 1 answers"),
        ([0.5, 97.0], [1, 1], 15, "confidence 97"),
        ([-0.1], [1], 15, "confidence -0.1"),
        ([math.nan], [1], 15, "confidence nan"),
        ([0.5], [1], 0, "bins is 0"),
    ],
)
def test_invalid_arguments_are_rejected(confidences: list[float], right: list[int], bins: int, message: str) -> None:
    """Errors about unequal lengths, invalid probabilities and missing bins name the value."""
    with pytest.raises(RefusedError, match=message):
        expected_calibration_error(confidences, right, bins=bins)

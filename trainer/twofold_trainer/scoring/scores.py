"""Compute scores from predictions. These are pure functions; a score of None means that nothing was measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from twofold_checkpoint.decoding import Entity
from twofold_checkpoint.examples import Span
from twofold_checkpoint.manifest import HeadName, Score

Metric = Literal["accuracy", "f1"]
METRIC_OF: dict[HeadName, Metric] = {"classifier": "accuracy", "ner": "f1"}


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """The numbers of correct, predicted and expected spans in one or more texts."""

    right: int = 0
    predicted: int = 0
    expected: int = 0

    def __add__(self, second: SpanCounts) -> SpanCounts:
        return SpanCounts(self.right + second.right, self.predicted + second.predicted, self.expected + second.expected)

    @property
    def f1(self) -> float:
        """Micro-averaged F1; 1.0 if there are neither predicted nor expected spans."""
        total = self.predicted + self.expected
        return 2 * self.right / total if total else 1.0


def count_spans(predicted: Sequence[Entity], expected: Sequence[Span], annotated: Collection[str] | None) -> SpanCounts:
    """Count exact matches of (start, end, type). Predicted spans of unannotated types do not count."""
    predicted_spans = {
        (span.start, span.end, span.type) for span in predicted if annotated is None or span.type in annotated
    }
    expected_spans = {(span.start, span.end, span.type) for span in expected}
    return SpanCounts(len(predicted_spans & expected_spans), len(predicted_spans), len(expected_spans))


def span_hits(
    predicted: Sequence[Entity], expected: Sequence[Span], annotated: Collection[str] | None
) -> list[tuple[float, int]]:
    """Return the confidence of each predicted span of an annotated type, and 1 if it is correct, else 0."""
    expected_spans = {(span.start, span.end, span.type) for span in expected}
    return [
        (span.score, int((span.start, span.end, span.type) in expected_spans))
        for span in predicted
        if annotated is None or span.type in annotated
    ]


@dataclass(frozen=True, slots=True)
class HeadScore:
    """A head's score, with the outcome of each example in order.

    An outcome is 0 or 1 for the classifier, and the span counts of a text for the NER head. Paired tests compare the
    outcomes of two models.
    """

    head: HeadName
    value: float
    outcomes: tuple[int, ...] | tuple[SpanCounts, ...]
    calibration_error: float | None = None
    """Expected calibration error of the labels or of the predicted spans."""

    @property
    def examples(self) -> int:
        """Number of measured examples."""
        return len(self.outcomes)

    @property
    def metric(self) -> Metric:
        """Name of the metric."""
        return METRIC_OF[self.head]

    def as_score(self) -> Score:
        """Return the score as the manifest stores it."""
        return Score(head=self.head, metric=self.metric, value=self.value, examples=self.examples)


def accuracy(right: Sequence[int]) -> HeadScore | None:
    """Return the share of correct answers; *right* contains 0 or 1 per answer."""
    return HeadScore("classifier", sum(right) / len(right), tuple(right)) if right else None


def span_f1(counts: Sequence[SpanCounts]) -> HeadScore | None:
    """Return the micro-averaged F1 over texts."""
    return HeadScore("ner", sum(counts, SpanCounts()).f1, tuple(counts)) if counts else None

"""Compute scores from predictions. Pure functions; None means that there was nothing to measure."""

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
    """Count the spans of one text, or of many."""

    right: int = 0
    predicted: int = 0
    expected: int = 0

    def __add__(self, second: SpanCounts) -> SpanCounts:
        return SpanCounts(self.right + second.right, self.predicted + second.predicted, self.expected + second.expected)

    @property
    def f1(self) -> float:
        """Micro-averaged F1; 1.0 where there was nothing to find and nothing was found."""
        total = self.predicted + self.expected
        return 2 * self.right / total if total else 1.0


def count_spans(predicted: Sequence[Entity], expected: Sequence[Span], annotated: Collection[str] | None) -> SpanCounts:
    """Compare exact (start, end, type). A predicted span of a type that is not annotated is neither right nor wrong."""
    answered = {(span.start, span.end, span.type) for span in predicted if annotated is None or span.type in annotated}
    wanted = {(span.start, span.end, span.type) for span in expected}
    return SpanCounts(len(answered & wanted), len(answered), len(wanted))


def span_hits(
    predicted: Sequence[Entity], expected: Sequence[Span], annotated: Collection[str] | None
) -> list[tuple[float, int]]:
    """Return the confidence of every predicted span whose type is annotated, and 1 if it is right, else 0."""
    wanted = {(span.start, span.end, span.type) for span in expected}
    return [
        (span.score, int((span.start, span.end, span.type) in wanted))
        for span in predicted
        if annotated is None or span.type in annotated
    ]


@dataclass(frozen=True, slots=True)
class HeadScore:
    """A head's score, with the outcome of each example in order.

    An outcome is 0 or 1 of the classifier, and the counts of the text's spans of the NER head.
    Paired tests between two models read them.
    """

    head: HeadName
    value: float
    outcomes: tuple[int, ...] | tuple[SpanCounts, ...]
    calibration_error: float | None = None
    """Of the labels, or of the spans that were found; see calibration.py."""

    @property
    def examples(self) -> int:
        """How many examples were measured."""
        return len(self.outcomes)

    @property
    def metric(self) -> Metric:
        """The name of the figure."""
        return METRIC_OF[self.head]

    def as_score(self) -> Score:
        """Return it in the manifest's form."""
        return Score(head=self.head, metric=self.metric, value=self.value, examples=self.examples)


def accuracy(right: Sequence[int]) -> HeadScore | None:
    """Return the share of right answers."""
    return HeadScore("classifier", sum(right) / len(right), tuple(right)) if right else None


def span_f1(counts: Sequence[SpanCounts]) -> HeadScore | None:
    """Return micro-averaged F1 over texts."""
    return HeadScore("ner", sum(counts, SpanCounts()).f1, tuple(counts)) if counts else None

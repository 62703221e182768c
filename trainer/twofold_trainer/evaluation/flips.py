"""List held-out examples whose answer changed between base and candidate: negative flips and fixes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from twofold_checkpoint.decoding import Entity, Prediction
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.findings import Answer, Change, FigureName

from twofold_trainer.evaluation.gate import Pair, changed

FLIPS_SHOWN = 20
"""Largest number of regressed protected examples that a job's report quotes."""

Marked = TypeVar("Marked", Span, Entity)
CHARACTERS_SHOWN = 600
"""Longest part of a text that is quoted."""


def list_changes(
    figure: FigureName,
    head: HeadName,
    scores: Pair,
    examples: tuple[Example, ...],
    answers: tuple[tuple[Prediction, ...], tuple[Prediction, ...]],
) -> Iterator[Change]:
    """Yield the first examples that are answered worse, then the first that are answered better."""
    for better in (False, True):
        for index in itertools.islice(changed(scores, better=better), FLIPS_SHOWN):
            example = examples[index]
            before, after = (_answer_of(head, answer[index], example) for answer in answers)
            yield Change(
                figure=figure,
                better=better,
                text=example.text[:CHARACTERS_SHOWN],
                before=before,
                after=after,
                label=example.label if head == "classifier" else None,
                entities=_within(example.entities or ()) if head == "ner" else None,
            )


def _answer_of(head: HeadName, answer: Prediction, example: Example) -> Answer:
    if head == "classifier":
        return Answer(label=answer.labels[0].label, score=answer.labels[0].score)
    annotated = example.annotated_types
    return Answer(
        entities=_within(entity for entity in answer.entities if annotated is None or entity.type in annotated)
    )


def _within(spans: Iterable[Marked]) -> tuple[Marked, ...]:
    return tuple(span for span in spans if span.end <= CHARACTERS_SHOWN)

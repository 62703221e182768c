"""Count results per label and entity type on held-out examples, and which names are confused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.findings import Confusion, FigureName, NameCount

NAMES_SHOWN = 200
CONFUSIONS_SHOWN = 200

Pair = tuple[str | None, str | None]
"""The expected name and the answered one. None means no entity."""


def pairs_of(head: HeadName, examples: Sequence[Example], answers: Sequence[Prediction]) -> Counter[Pair]:
    """Count (expected, answered) pairs: labels, or the types of all expected and predicted spans."""
    counted: Counter[Pair] = Counter()
    for example, answer in zip(examples, answers, strict=True):
        if head == "classifier":
            counted[example.label, answer.labels[0].label] += 1
        else:
            counted.update(_span_types(example, answer))
    return counted


def _span_types(example: Example, answer: Prediction) -> Iterator[Pair]:
    """Yield the (expected, answered) types of each range. Unannotated types do not count."""
    annotated = example.annotated_types
    expected = {(entity.start, entity.end): entity.type for entity in example.entities or ()}
    answered = {
        (entity.start, entity.end): entity.type
        for entity in answer.entities
        if annotated is None or entity.type in annotated
    }
    for span in expected.keys() | answered.keys():
        yield expected.get(span), answered.get(span)


def count_names(figure: FigureName, before: Counter[Pair], after: Counter[Pair] | None) -> tuple[NameCount, ...]:
    """Return the counts of each name, the most frequent names first."""
    total = before if after is None else before + after
    names = {name for pair in total for name in pair if name is not None}
    rows = [
        NameCount(
            figure=figure,
            name=name,
            expected=_sum(before, expected=name),
            answered_before=_sum(before, answered=name),
            right_before=before[name, name],
            answered_after=None if after is None else _sum(after, answered=name),
            right_after=None if after is None else after[name, name],
        )
        for name in names
    ]
    return tuple(sorted(rows, key=lambda row: (-row.expected, row.name))[:NAMES_SHOWN])


def list_confusions(figure: FigureName, before: Counter[Pair], after: Counter[Pair] | None) -> tuple[Confusion, ...]:
    """Return the confusions, the most frequent first."""
    later = Counter[Pair]() if after is None else after
    wrong = [pair for pair in before.keys() | later.keys() if pair[0] != pair[1]]
    wrong.sort(key=lambda pair: (-later[pair], -before[pair], pair[0] or "", pair[1] or ""))
    return tuple(
        Confusion(
            figure=figure,
            expected=pair[0],
            answered=pair[1],
            before=before[pair],
            after=None if after is None else after[pair],
        )
        for pair in wrong[:CONFUSIONS_SHOWN]
    )


def _sum(counted: Counter[Pair], *, expected: str | None = None, answered: str | None = None) -> int:
    return sum(
        count
        for pair, count in counted.items()
        if (pair[0] if expected is not None else pair[1]) == (expected or answered)
    )

"""Detect new labels that replace old ones in answers: synonyms, or labels that texts barely distinguish.

An adapted head loses old labels almost only to new ones (ADR 37). If two names mean the same, one of them must lose, whatever
is trained. Only a person can tell whether they do, so a note names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.events import NoteAdded

MIN_TAKEN = 3
"""Minimum number of held-out answers that a new name took from an old one. Fewer may be chance."""
MIN_SHARE = 0.2
"""Minimum share of an old name's held-out answers that a new name took."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Collision:
    """*new* was answered instead of *old* in *taken* of *expected* cases."""

    old: str
    new: str
    taken: int
    expected: int


def find_collisions(
    head: HeadName, examples: Sequence[Example], answers: Sequence[Prediction], added: Collection[str]
) -> list[Collision]:
    """Return the collisions on examples that are annotated with old names only, the worst first."""
    expected: Counter[str] = Counter()
    taken: Counter[tuple[str, str]] = Counter()
    for example, answer in zip(examples, answers, strict=True):
        for old, new in _pairs(head, example, answer):
            expected[old] += 1
            if new is not None and new in added:
                taken[old, new] += 1
    answered = [Collision(old, new, count, expected[old]) for (old, new), count in taken.items()]
    worst = [collision for collision in answered if collision.taken >= max(MIN_TAKEN, MIN_SHARE * collision.expected)]
    return sorted(worst, key=lambda collision: (-collision.taken, collision.old, collision.new))


def describe_collisions(collisions: Sequence[Collision]) -> NoteAdded:
    """Return a warning about collisions that says what to do."""
    pairs = ", ".join(
        f"{collision.new!r} for {collision.old!r} ({collision.taken} of {collision.expected})"
        for collision in collisions[:SHOWN]
    )
    more = "" if len(collisions) <= SHOWN else f" and {len(collisions) - SHOWN} more"
    return NoteAdded(
        message=f"On held-out examples, the model answers new names instead of old ones: {pairs}{more}. If two names mean the "
        "same, use the old one for both. If not, add examples of the old name that resemble those of the new one.",
        warning=True,
    )


def _pairs(head: HeadName, example: Example, answer: Prediction) -> Iterator[tuple[str, str | None]]:
    """Yield each expected name with the answer in its place; for entities, with the answer for the same range."""
    if head == "classifier":
        if example.label is not None:
            yield example.label, answer.labels[0].label
        return
    answered = {(entity.start, entity.end): entity.type for entity in answer.entities}
    for span in example.entities or ():
        yield span.type, answered.get((span.start, span.end))

"""Detect new labels that replace old ones in answers: synonyms, or labels that texts barely distinguish.

What an adapted head loses of its old labels it loses nearly all to new ones (ADR 37). Where two names mean the same, one of
them has to lose, whatever is trained. Only a person can say whether they do, and has to be told which.
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
"""Held-out answers that a new name must take before anything is said: fewer are chance."""
MIN_SHARE = 0.2
"""Share of an old name's held-out answers that must be taken."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Collision:
    """Say that *new* was answered *taken* times where *old* was right, out of *expected* times."""

    old: str
    new: str
    taken: int
    expected: int


def find_collisions(
    head: HeadName, examples: Sequence[Example], answers: Sequence[Prediction], added: Collection[str]
) -> list[Collision]:
    """Compare answers with what was expected of examples that know only the old names; the worst collision first."""
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
    """Put collisions into a warning that says what to do."""
    pairs = ", ".join(
        f"{collision.new!r} for {collision.old!r} ({collision.taken} of {collision.expected})"
        for collision in collisions[:SHOWN]
    )
    more = "" if len(collisions) <= SHOWN else f" and {len(collisions) - SHOWN} more"
    return NoteAdded(
        message=f"On held-out examples, new names are answered for old ones: {pairs}{more}. If two names mean the same, "
        "use the old one for both; if they do not, give examples of the old name that look like the new one's.",
        warning=True,
    )


def _pairs(head: HeadName, example: Example, answer: Prediction) -> Iterator[tuple[str, str | None]]:
    """Yield each name that was expected, with what was answered in its place: of entities, over the same extent."""
    if head == "classifier":
        if example.label is not None:
            yield example.label, answer.labels[0].label
        return
    answered = {(entity.start, entity.end): entity.type for entity in answer.entities}
    for span in example.entities or ():
        yield span.type, answered.get((span.start, span.end))

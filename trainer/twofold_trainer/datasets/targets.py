"""Convert examples to training targets: tokens, labels and the allowed tags of each token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from twofold_checkpoint.alignment import UNKNOWN, align
from twofold_checkpoint.encoding import Encoder, Encoding
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.labels import OUTSIDE, LabelSet, begin_tag, inside_tag
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.events import NoteAdded

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Target:
    """An example in the form that training uses.

    *label* is a row of the classifier, or -1 if the text has no label. *allowed* is (tokens, tags); a token without
    annotation has all True. *rehearsed* marks examples from the checkpoint's memory.
    """

    example: Example
    encoding: Encoding
    label: int
    allowed: Mask
    unaligned: tuple[Span, ...]
    rehearsed: bool = False

    def has_labels_for(self, head: HeadName) -> bool:
        """Return whether the example is annotated for a head."""
        return self.label >= 0 if head == "classifier" else self.example.entities is not None


def make_targets(
    examples: Sequence[Example],
    encoder: Encoder,
    labels: LabelSet,
    *,
    heads: Collection[str] = ("classifier", "ner"),
    rehearsed: bool = False,
) -> list[Target]:
    """Encode examples and build their targets for the given heads."""
    row_of = {label: row for row, label in enumerate(labels.labels)}
    targets = []
    for example, encoding in zip(examples, encoder.encode([example.text for example in examples]), strict=True):
        label = row_of[example.label] if "classifier" in heads and example.label is not None else -1
        allowed = np.ones((len(encoding.ids), len(labels.tags)), bool)
        unaligned: tuple[Span, ...] = ()
        if "ner" in heads and example.entities is not None:
            aligned = align(encoding, example.entities, labels.entity_types)
            unaligned = aligned.unaligned
            annotated = labels.entity_types if example.annotated_types is None else example.annotated_types
            allowed = allowed_tags(aligned.tags, encoding.word_starts, len(encoding.ids), labels, annotated)
        targets.append(Target(example, encoding, label, allowed, unaligned, rehearsed))
    return targets


def allowed_tags(
    word_tags: NDArray[np.int64],
    word_starts: NDArray[np.int64],
    tokens: int,
    labels: LabelSet,
    annotated: Collection[str],
) -> Mask:
    """Return (tokens, tags): True where a token may have a tag.

    A token in a span may only have its span's tag: B for the first sub-word of the first word and I for all others, as
    the decoder expects. A token outside all spans may be O, or have any tag of a type that the data does not annotate.
    A word touched by an unaligned span may have any tag.
    """
    width = len(labels.tags)
    outside = np.zeros(width, bool)
    outside[OUTSIDE] = True
    for index, name in enumerate(labels.entity_types):
        if name not in annotated:
            outside[[begin_tag(index), inside_tag(index)]] = True
    # Only the first sub-word of a word can begin a span, so the others exclude B.
    outside_continued = outside.copy()
    outside_continued[1::2] = False
    allowed = np.zeros((tokens, width), bool)
    stops = np.append(word_starts[1:], tokens)
    for tag, start, stop in zip(word_tags.tolist(), word_starts.tolist(), stops.tolist(), strict=True):
        if tag == UNKNOWN:
            allowed[start:stop] = True
        elif tag == OUTSIDE:
            allowed[start] = outside
            allowed[start + 1 : stop] = outside_continued
        else:
            allowed[start, tag] = True
            allowed[start + 1 : stop, tag + 1 if tag % 2 else tag] = True
    return allowed


def describe_unaligned(targets: Sequence[Target], *, shown: int = 3) -> tuple[int, str]:
    """Count the annotations that do not align with word boundaries, and quote the first few."""
    unaligned = [(target.example.text, span) for target in targets for span in target.unaligned]
    quotes = []
    for text, span in unaligned[:shown]:
        start, stop = max(0, span.start - 15), min(len(text), span.end + 15)
        quotes.append(f"{span.type} {text[span.start : span.end]!r} in {text[start:stop]!r}")
    return len(unaligned), "; ".join(quotes)


def note_unaligned(unaligned: tuple[int, str]) -> NoteAdded:
    """Return a warning about annotations that do not align with word boundaries."""
    count, quotes = unaligned
    message = f"{count} annotations begin or end inside a word and were excluded from the loss, such as {quotes}."
    return NoteAdded(message=message, warning=True)

"""Convert character spans to word tags, the training targets of the NER head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.examples import Span
from twofold_checkpoint.labels import OUTSIDE, begin_tag, inside_tag

UNKNOWN = -1
"""Tag of a word touched by a span that does not align with word boundaries."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """One tag index per word, and the spans that do not align with word boundaries."""

    tags: NDArray[np.int64]
    unaligned: tuple[Span, ...]


def align(encoding: Encoding, spans: Sequence[Span], entity_types: Sequence[str]) -> Alignment:
    """Return one tag per word.

    A span is aligned if it fully contains every word that it touches, ignoring white space at its ends. Words touched
    by an unaligned span get UNKNOWN and are excluded from the loss.
    """
    words = encoding.word_spans()
    tags = np.full(len(words), OUTSIDE, np.int64)
    unaligned = []
    index_of = {name: index for index, name in enumerate(entity_types)}
    for span in spans:
        touched = np.flatnonzero((words[:, 0] < span.end) & (words[:, 1] > span.start))
        fits = len(touched) and words[touched[0], 0] >= span.start and words[touched[-1], 1] <= span.end
        covered = encoding.text[span.start : span.end].strip()
        if fits:
            inner = encoding.text[int(words[touched[0], 0]) : int(words[touched[-1], 1])]
            fits = inner == covered
        if not fits:
            tags[touched] = UNKNOWN
            unaligned.append(span)
            continue
        tags[touched] = inside_tag(index_of[span.type])
        tags[touched[0]] = begin_tag(index_of[span.type])
    return Alignment(tags, tuple(unaligned))

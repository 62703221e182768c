"""Decode the heads' scores into labels and spans. This is the only decoder in the project."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.labels import OUTSIDE, LabelSet

Floats = NDArray[np.float32]


class LabelScore(msgspec.Struct, frozen=True):
    """A label and its probability."""

    label: str
    score: float


class Entity(msgspec.Struct, frozen=True, kw_only=True):
    """An entity span in code points. *score* is the lowest tag probability in the span."""

    start: int
    end: int
    type: str
    score: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The labels and entities predicted for one text. *labels* are sorted by descending score."""

    labels: tuple[LabelScore, ...] = ()
    entities: tuple[Entity, ...] = ()


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def merge_windows(encoding: Encoding, rows: Sequence[Floats]) -> Floats:
    """Average rows (width,), such as label logits, over a text's windows, by the tokens that each window sees."""
    if len(rows) == 1:
        return rows[0]
    weights = np.asarray([window.stop - window.start for window in encoding.windows], np.float32)
    merged: Floats = np.average(np.stack(rows), axis=0, weights=weights).astype(np.float32)
    return merged


def merge_tokens(encoding: Encoding, rows: Sequence[Floats]) -> Floats:
    """Join the per-token rows (longest, width) of a text's windows into (tokens, width), overlaps cut in the middle."""
    parts = []
    for window, row in zip(encoding.windows, rows, strict=True):
        offset = window.prefix - window.start
        parts.append(row[window.keep_start + offset : window.keep_stop + offset])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def decode(
    encodings: Sequence[Encoding],
    label_logits: Sequence[Floats] | None,
    tag_logits: Sequence[Floats] | None,
    labels: LabelSet,
    *,
    top: int = 1,
) -> list[Prediction]:
    """Decode each text's merged logits, (labels,) and (tokens, tags), into a prediction.

    A head without logits contributes no labels or entities. All texts are decoded together, because call overhead
    costs more than the arithmetic.
    """
    count = len(encodings)
    decoded = (
        [()] * count if label_logits is None or not count else decode_labels(np.stack(label_logits), labels.labels, top)
    )
    spans = [()] * count if tag_logits is None else decode_entities(encodings, tag_logits, labels.entity_types)
    return [Prediction(labels=own, entities=entities) for own, entities in zip(decoded, spans, strict=True)]


def decode_labels(logits: Floats, labels: Sequence[str], top: int = 1) -> list[tuple[LabelScore, ...]]:
    """Return, for each row of (texts, labels), the *top* labels with their probabilities; equal scores keep row order."""
    probabilities = np.exp(log_softmax(logits))
    # argmax returns the first of equal scores, as a stable sort does.
    order = logits.argmax(axis=1)[:, None] if top == 1 else np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    scores = np.take_along_axis(probabilities, order, axis=1)
    return [
        tuple(LabelScore(labels[index], score) for index, score in zip(row, own, strict=True))
        for row, own in zip(order.tolist(), scores.tolist(), strict=True)
    ]


def decode_entities(
    encodings: Sequence[Encoding], logits: Sequence[Floats], entity_types: Sequence[str]
) -> list[tuple[Entity, ...]]:
    """Find the best sequence of word tags under the BIO rules for each text, and return its spans.

    *logits* is (tokens, tags) for each text. A word's score for a tag is the sum over its sub-words. Only the first
    sub-word may begin a span, and the others continue its tag, so a span never ends inside a word. The rules (no I after
    O or after another type) are those of a masked CRF; Lester et al. 2020 (arXiv:2010.04362) show that constrained
    decoding is enough.
    """
    decoded: list[list[Entity]] = [[] for _ in encodings]
    if not entity_types or not any(len(encoding.ids) for encoding in encodings):
        return [tuple(own) for own in decoded]
    tokens = _ends([len(encoding.ids) for encoding in encodings])
    words = _ends([len(encoding.word_starts) for encoding in encodings])
    starts = np.concatenate(
        [encoding.word_starts + first for encoding, first in zip(encodings, tokens[:-1], strict=True)]
    )
    scores = _word_scores(log_softmax(np.concatenate(logits)), starts)
    tags = _best_tags(scores, words)
    # A span begins at a B tag and ends before the next word that is not an I tag. No text begins with an I tag.
    begins = np.flatnonzero(tags % 2)
    if not len(begins):
        return [tuple(own) for own in decoded]
    outside = np.append(np.flatnonzero((tags % 2 == 1) | (tags == OUTSIDE)), len(tags))
    stops = outside[np.searchsorted(outside, begins, side="right")]
    offsets = np.concatenate([encoding.offsets for encoding in encodings])
    places = np.stack(
        [np.minimum.reduceat(offsets[:, 0], starts), np.maximum.reduceat(offsets[:, 1], starts)], axis=1
    ).tolist()
    texts = np.searchsorted(words, begins, side="right") - 1
    for text, begin, stop in zip(texts.tolist(), begins.tolist(), stops.tolist(), strict=True):
        start, end = places[begin][0], places[stop - 1][1]
        if start >= end:  # A byte-level tokenizer makes words of white space alone, whose range is empty.
            continue
        own = log_softmax(scores[begin:stop])
        score = float(np.exp(own[np.arange(stop - begin), tags[begin:stop]].min()))
        decoded[text].append(Entity(start=start, end=end, type=entity_types[(int(tags[begin]) - 1) // 2], score=score))
    return [tuple(own) for own in decoded]


def _ends(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return the start offset of each of several concatenated sequences, followed by the end of the last one."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _best_tags(scores: Floats, words: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the best tag of each word of several concatenated texts. *words* holds the offset of each text's first word."""
    tags: NDArray[np.int64] = scores.argmax(axis=1)
    # The per-word argmax is optimal wherever it obeys the rules, which is the usual case.
    before = np.concatenate([[OUTSIDE], tags[:-1]])
    before[words[:-1][words[:-1] < len(tags)]] = OUTSIDE
    inside = (tags > OUTSIDE) & (tags % 2 == 0)
    wrong = np.flatnonzero(inside & (before != tags) & (before != tags - 1))
    for text in set((np.searchsorted(words, wrong, side="right") - 1).tolist()):
        tags[words[text] : words[text + 1]] = viterbi(scores[words[text] : words[text + 1]])
    return tags


def viterbi(scores: Floats) -> NDArray[np.int64]:
    """Return the best tag sequence (words,) for *scores* (words, tags) under the BIO rules.

    O and B may follow anything, I-x only B-x or I-x; so each step is O(tags) and not O(tags squared).
    """
    length, width = scores.shape
    best = scores[0].copy()
    best[2::2] = -np.inf  # A sequence cannot begin inside a span.
    back = np.empty((length, width), np.int64)
    for step in range(1, length):
        source = int(best.argmax())
        reached = np.full(width, best[source], best.dtype)
        origin = np.full(width, source, np.int64)
        begin, inside = best[1::2], best[2::2]
        from_begin = begin >= inside
        reached[2::2] = np.where(from_begin, begin, inside)
        origin[2::2] = np.where(from_begin, np.arange(1, width, 2), np.arange(2, width, 2))
        best = reached + scores[step]
        back[step] = origin
    tags = np.empty(length, np.int64)
    tags[-1] = best.argmax()
    for step in range(length - 1, 0, -1):
        tags[step - 1] = back[step, tags[step]]
    return tags


def _word_scores(tokens: Floats, word_starts: NDArray[np.int64]) -> Floats:
    """Sum token log-probabilities (tokens, tags) into word scores (words, tags)."""
    if len(word_starts) == len(tokens):
        return tokens
    continuation = tokens.copy()
    continuation[:, 1::2] = tokens[:, 2::2]  # Later sub-words of a B word count as I.
    continuation[word_starts] = tokens[word_starts]
    summed: Floats = np.add.reduceat(continuation, word_starts, axis=0)
    return summed

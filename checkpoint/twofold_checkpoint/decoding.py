"""Scores of the heads to labels and spans. The only decoder in the project."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.labels import OUTSIDE

Floats = NDArray[np.float32]


class LabelScore(msgspec.Struct, frozen=True):
    """One label and its probability."""

    label: str
    score: float


class Entity(msgspec.Struct, frozen=True, kw_only=True):
    """One span of a text, in code points, with the smallest tag probability in it."""

    start: int
    end: int
    type: str
    score: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What one text is, and what is in it. *labels* are best first."""

    labels: tuple[LabelScore, ...] = ()
    entities: tuple[Entity, ...] = ()


def log_softmax(logits: Floats) -> Floats:
    """Normalise the last axis."""
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


def decode_labels(logits: Floats, labels: Sequence[str], top: int = 1) -> tuple[LabelScore, ...]:
    """Return the *top* labels with their probabilities, best first; equal scores keep row order."""
    probabilities = np.exp(log_softmax(logits))
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(LabelScore(labels[index], float(probabilities[index])) for index in order)


def decode_entities(encoding: Encoding, logits: Floats, entity_types: Sequence[str]) -> tuple[Entity, ...]:
    """Find the best sequence of word tags under the BIO rules, and return its spans.

    *logits* is (tokens, tags). A word's score for a tag is the sum over its sub-words: the first may begin a span, the
    others can only go on as the first one does, so a span never ends inside a word. The rules (no I after O or after
    another type) are those of a masked CRF; see Lester et al. 2020 (arXiv:2010.04362) for why decoding with them is
    enough.
    """
    if not len(encoding.word_starts) or not entity_types:
        return ()
    words = _word_scores(log_softmax(logits), encoding.word_starts)
    tags = viterbi(words)
    probabilities = np.exp(np.take_along_axis(log_softmax(words), tags[:, None], axis=1))[:, 0]
    places = encoding.word_spans()
    entities: list[Entity] = []
    word = 0
    while word < len(tags):
        if tags[word] == OUTSIDE:
            word += 1
            continue
        stop = word + 1
        while stop < len(tags) and tags[stop] == tags[word] + 1:
            stop += 1
        start, end = int(places[word, 0]), int(places[stop - 1, 1])
        if start < end:  # A byte-level tokenizer makes words of white space alone, whose range is empty.
            name = entity_types[(int(tags[word]) - 1) // 2]
            entities.append(Entity(start=start, end=end, type=name, score=float(probabilities[word:stop].min())))
        word = stop
    return tuple(entities)


def viterbi(scores: Floats) -> NDArray[np.int64]:
    """Return the best tag sequence (words,) for *scores* (words, tags) under the BIO rules.

    O and B may follow anything, I-x only B-x or I-x; so each step is O(tags) and not O(tags squared).
    """
    greedy: NDArray[np.int64] = scores.argmax(axis=1)
    if _obeys_the_rules(greedy):  # Nothing can be better than the best of every word, and mostly they agree.
        return greedy
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


def _obeys_the_rules(tags: NDArray[np.int64]) -> bool:
    before = np.concatenate([[OUTSIDE], tags[:-1]])
    inside = (tags > OUTSIDE) & (tags % 2 == 0)
    return bool(np.all(~inside | (before == tags) | (before == tags - 1)))


def _word_scores(tokens: Floats, word_starts: NDArray[np.int64]) -> Floats:
    """Sum token log-probabilities (tokens, tags) into word scores (words, tags)."""
    if len(word_starts) == len(tokens):
        return tokens
    rest = tokens.copy()
    rest[:, 1::2] = tokens[:, 2::2]  # After its first sub-word, a word that began a span goes on inside it.
    rest[word_starts] = tokens[word_starts]
    summed: Floats = np.add.reduceat(rest, word_starts, axis=0)
    return summed

"""Tokenise texts into ids with exact character offsets, split into windows that fit the backbone.

Training and serving share this module, so that both encode a text identically.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.int64]


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Encoder settings, stored in the manifest so that serving encodes texts exactly as training did."""

    max_tokens: int
    """Maximum window length, including special tokens."""
    overlap: int
    """Tokens that neighbouring windows of a long text share."""
    pad_id: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.max_tokens // 2:
            raise ValueError(f"overlap {self.overlap} must be from 0 to below half of max_tokens {self.max_tokens}")


@dataclass(frozen=True, slots=True)
class Window:
    """A range of a text's tokens that the backbone reads in one row.

    *ids* includes the special tokens; the text's tokens are ``ids[prefix : prefix + (stop - start)]``. The scores of
    tokens ``[keep_start, keep_stop)`` are taken from this window. Overlaps are cut in the middle, where both windows
    still have context.
    """

    ids: Ids
    prefix: int
    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """A tokenised text.

    *offsets* is (tokens, 2): half-open code-point ranges. *word_starts* holds the index of the first token of each
    word; a word is a unit of the tokenizer's pre-tokenisation, and the unit of tagging.
    """

    text: str
    ids: Ids
    offsets: NDArray[np.int64]
    word_starts: NDArray[np.int64]
    windows: tuple[Window, ...]

    def word_spans(self) -> NDArray[np.int64]:
        """Return the (words, 2) half-open code-point ranges of the words."""
        if not len(self.word_starts):
            return np.zeros((0, 2), np.int64)
        return np.stack(
            [
                np.minimum.reduceat(self.offsets[:, 0], self.word_starts),
                np.maximum.reduceat(self.offsets[:, 1], self.word_starts),
            ],
            axis=1,
        )


class Encoder:
    """Turn texts into encodings. It is stateless after construction and may be shared by threads."""

    def __init__(self, tokenizer: Tokenizer, settings: EncoderSettings) -> None:
        # Some packaged tokenizers enable truncation and padding, which would drop or add tokens silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.settings = settings
        self._prefix, self._suffix = _special_ids(tokenizer)
        self._room = settings.max_tokens - len(self._prefix) - len(self._suffix)
        if self._room <= settings.overlap:
            raise ValueError(f"max_tokens {settings.max_tokens} leaves no room beside the overlap {settings.overlap}")

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts. Nothing is truncated: a long text has several windows."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            self._encoding(text, tokenized.ids, tokenized.offsets, tokenized.word_ids)
            for text, tokenized in zip(texts, encoded, strict=True)
        ]

    def _encoding(self, text: str, ids: list[int], offsets: list[tuple[int, int]], words: list[int | None]) -> Encoding:
        places = np.asarray(offsets, np.int64).reshape(-1, 2)
        _trim_white_space(text, places)
        if not text.isascii():
            _take_in_marks(text, places)
        # A token without a word id (a special token typed by the caller) counts as a separate word.
        word_starts = [
            index
            for index, word in enumerate(words)
            if index == 0 or word is None or words[index - 1] is None or word != words[index - 1]
        ]
        array = np.asarray(ids, np.int64)
        return Encoding(text, array, places, np.asarray(word_starts, np.int64), tuple(self._windows(array)))

    def _windows(self, ids: Ids) -> list[Window]:
        overlap = self.settings.overlap
        starts = [0]
        while starts[-1] + self._room < len(ids):
            starts.append(starts[-1] + self._room - overlap)
        windows = []
        for index, start in enumerate(starts):
            stop = min(start + self._room, len(ids))
            keep_start = start if index == 0 else start + overlap // 2
            keep_stop = stop if index == len(starts) - 1 else starts[index + 1] + overlap // 2
            body = np.concatenate([self._prefix, ids[start:stop], self._suffix])
            if not len(body):  # The backbone needs a token even for an empty text without special tokens.
                body = np.asarray([self.settings.pad_id], np.int64)
            windows.append(Window(body, len(self._prefix), start, stop, keep_start, keep_stop))
        return windows


def pad(windows: Sequence[Window], pad_id: int) -> tuple[Ids, Ids]:
    """Stack windows into (input_ids, attention_mask), both (windows, longest), padded on the right."""
    longest = max(len(window.ids) for window in windows)
    ids = np.full((len(windows), longest), pad_id, np.int64)
    mask = np.zeros((len(windows), longest), np.int64)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = window.ids
        mask[row, : len(window.ids)] = 1
    return ids, mask


def _special_ids(tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """Return the ids that the tokenizer puts before and after a text."""
    marked = tokenizer.encode("a", add_special_tokens=True)
    body = [index for index, special in enumerate(marked.special_tokens_mask) if not special]
    if not body:
        raise ValueError("the tokenizer has no token for the letter a; it does not look like a text tokenizer")
    before, after = marked.ids[: body[0]], marked.ids[body[-1] + 1 :]
    return np.asarray(before, np.int64), np.asarray(after, np.int64)


def _trim_white_space(text: str, offsets: NDArray[np.int64]) -> None:
    """Exclude the white space that byte-level tokenizers attach to the following word from the offsets, in place.

    A token that is only white space gets an empty range at the end of that white space.
    """
    for offset in offsets:
        start, end = int(offset[0]), int(offset[1])
        while start < len(text) and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        offset[0], offset[1] = start, max(start, end)


def _take_in_marks(text: str, offsets: NDArray[np.int64]) -> None:
    """Extend each token over the marks after it that normalisation removed, in place.

    A tokenizer that strips accents leaves combining marks, variation selectors and joiners outside every token. Without
    this, a span that ends there would be one character short.
    """
    following = itertools.chain((int(start) for start, _ in offsets[1:]), (len(text),))
    for offset, limit in zip(offsets, following, strict=False):
        end = int(offset[1])
        while end < limit and unicodedata.category(text[end]) in {"Mn", "Me", "Mc", "Cf"}:
            end += 1
        offset[1] = end

"""Input features of the heads: one row per text and one row per token, with windows merged.

Serving averages the classifier's logits over a text's windows and cuts overlaps in the middle. Both are linear, so
merging *features* the same way gives the same logits, and training, scoring and cached features all share this form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from twofold_checkpoint.encoding import Encoding, Window, pad
from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_trainer.modeling.model import Hidden, TwofoldModel, pool


@dataclass(frozen=True, slots=True)
class Features:
    """The features *pooled* (texts, hidden) and *tokens* (all tokens of all texts in order, hidden)."""

    pooled: Tensor
    tokens: Tensor


FeatureSource = Callable[[Sequence[Encoding]], Features]
"""Returns the features of texts, computed or cached."""


def live(model: TwofoldModel, pad_id: int, *, heads: Sequence[HeadName] = HEADS) -> FeatureSource:
    """Return a source that runs the whole model."""
    return lambda encodings: compute_features(model, encodings, pad_id, heads=heads)


def without_gradients(source: FeatureSource) -> FeatureSource:
    """Return a source without gradients, so that only the heads train."""

    def compute(encodings: Sequence[Encoding]) -> Features:
        with torch.no_grad():
            return source(encodings)

    return compute


def compute_features(
    model: TwofoldModel, encodings: Sequence[Encoding], pad_id: int, *, heads: Sequence[HeadName] = HEADS
) -> Features:
    """Run the model's blocks over all windows of the texts in one batch."""
    windows = [window for encoding in encodings for window in encoding.windows]
    ids, mask = (torch.from_numpy(array) for array in pad(windows, pad_id))
    return merge_hidden(model.hidden(ids, mask, heads=heads), mask, encodings, windows, model)


def merge_hidden(
    hidden: Hidden, mask: Tensor, encodings: Sequence[Encoding], windows: Sequence[Window], model: TwofoldModel
) -> Features:
    """Turn the hidden states of all windows (windows, tokens, hidden) into features of the texts."""
    pooled = pool(hidden.classifier, mask, model.pooling)
    if len(windows) > len(encodings):
        pooled = _window_weights(encodings) @ pooled
    rows: list[int] = []
    columns: list[int] = []
    for row, window in enumerate(windows):
        first = window.prefix - window.start
        positions = range(window.keep_start + first, window.keep_stop + first)
        rows.extend([row] * len(positions))
        columns.extend(positions)
    tokens = hidden.ner[torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)]
    return Features(pooled, tokens)


def _window_weights(encodings: Sequence[Encoding]) -> Tensor:
    """Return (texts, windows): the weight of each window in its text, proportional to the window's tokens."""
    weights = torch.zeros(len(encodings), sum(len(encoding.windows) for encoding in encodings))
    column = 0
    for row, encoding in enumerate(encodings):
        sizes = torch.tensor([float(window.stop - window.start) for window in encoding.windows])
        if len(sizes) == 1:
            sizes = torch.ones(1)  # An empty text has one window of no tokens.
        weights[row, column : column + len(sizes)] = sizes / sizes.sum()
        column += len(sizes)
    return weights


CACHE_BYTES = 2 << 30
"""Largest size of the feature cache; larger sets of features are recomputed in every epoch."""


class FeatureCache:
    """A cache of the features of texts, valid while the backbone is frozen."""

    def __init__(self) -> None:
        self._cache: dict[
            int, tuple[Encoding, Features]
        ] = {}  # Holds the encoding too: ids are unique only among live objects.

    def fill(self, source: FeatureSource, encodings: Sequence[Encoding], *, rows: int) -> Iterator[int]:
        """Compute and cache the features of texts, *rows* at a time; yields the number of texts done."""
        new = [encoding for encoding in encodings if id(encoding) not in self._cache]
        new.sort(key=lambda encoding: len(encoding.ids))
        for first in range(0, len(new), rows):
            batch = new[first : first + rows]
            with torch.no_grad():
                computed = source(batch)
            tokens = torch.split(computed.tokens, [len(encoding.ids) for encoding in batch])
            for encoding, pooled, token_features in zip(batch, computed.pooled, tokens, strict=True):
                self._cache[id(encoding)] = encoding, Features(pooled.clone(), token_features.clone())
            yield first + len(batch)

    def get(self, encodings: Sequence[Encoding]) -> Features:
        """Return the cached features of texts."""
        cached = [self._cache[id(encoding)][1] for encoding in encodings]
        return Features(
            torch.stack([features.pooled for features in cached]), torch.cat([features.tokens for features in cached])
        )


def cache_bytes(encodings: Sequence[Encoding], hidden_size: int) -> int:
    """Estimate the size of the cached features of texts, in bytes."""
    return sum(len(encoding.ids) + 1 for encoding in encodings) * hidden_size * 4


def fits_in_memory(size: int) -> bool:
    """Return whether cached features of *size* bytes fit in memory."""
    return size <= CACHE_BYTES

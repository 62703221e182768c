"""Cache the output of a backbone's frozen prefix, so that the prefix runs once and not in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from twofold_checkpoint.encoding import Encoding, pad
from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_trainer.modeling.blocks import run_blocks
from twofold_trainer.modeling.features import Features, merge_hidden
from twofold_trainer.modeling.model import Entry, TwofoldModel


class PrefixCache:
    """The hidden states (tokens, hidden) that enter the block at *depth*, for each window of a text.

    The blocks below must stay frozen and in evaluation mode, or the cache is wrong. States are fp32, so that a
    cached step equals an uncached one up to summation order. Above a fork, the cache belongs to the path of *head*.
    """

    def __init__(self, model: TwofoldModel, depth: int, pad_id: int, *, head: HeadName | None = None) -> None:
        assert head or depth <= model.fork_point, "Above the fork, a cache needs a head. This is a bug."
        self.depth = depth
        self._model = model
        self._path = model.blocks() if head is None else model.path(head)
        self._pad_id = pad_id
        self._cache: dict[int, tuple[Encoding, list[Tensor]]] = {}

    def fill(self, encodings: Sequence[Encoding], *, rows: int, bf16: bool = False) -> Iterator[int]:
        """Run the prefix over texts, *rows* at a time; yields the number of texts done. With *bf16*, as in training steps, it multiplies in bf16."""
        model = self._model
        new = [encoding for encoding in encodings if id(encoding) not in self._cache]
        new.sort(key=lambda encoding: len(encoding.ids))
        for first in range(0, len(new), rows):
            batch = new[first : first + rows]
            windows = [window for encoding in batch for window in encoding.windows]
            ids, mask = (torch.from_numpy(array) for array in pad(windows, self._pad_id))
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                blocks = self._path[: self.depth + 1]
                _, entering = run_blocks(
                    model.backbone, blocks, ids, mask, layers=model.layers, keep_input_of=blocks[-1]
                )
            assert entering is not None
            split = iter(
                [row[: int(length)].clone() for row, length in zip(entering.float(), mask.sum(1), strict=True)]
            )
            for encoding in batch:
                self._cache[id(encoding)] = encoding, [next(split) for _ in encoding.windows]
            yield first + len(batch)

    def features(self, encodings: Sequence[Encoding], *, heads: Sequence[HeadName] = HEADS) -> Features:
        """Run the blocks above the prefix on cached texts."""
        windows = [window for encoding in encodings for window in encoding.windows]
        cached = [state for encoding in encodings for state in self._cache[id(encoding)][1]]
        hidden = pad_sequence(cached, batch_first=True)
        lengths = np.array([len(state) for state in cached])
        mask = torch.from_numpy((np.arange(hidden.shape[1]) < lengths[:, None]).astype(np.int64))
        # The ids do not affect the result; they only give the backbone the shape.
        ids = torch.full(mask.shape, self._pad_id)
        read = self._model.hidden(ids, mask, heads=heads, entry=Entry(self.depth, hidden))
        return merge_hidden(read, mask, encodings, windows, self._model)

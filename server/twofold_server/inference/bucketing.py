"""Windows of many lengths, cut into forward passes that waste little."""

from __future__ import annotations

from collections.abc import Sequence

PADDING_PARITY_LENGTH = 512
"""Length of the longest window at which a token of padding costs as much as a real one. The graph multiplies no padding, but
attention has a place for each, and its places grow with the square of the length: on a CPU MiniLM takes 0.33 ms for a
token, and for one of padding 0.03 beside a window of 40 tokens, 0.05 beside one of 80, and 0.11 beside one of 160."""


def split_into_passes(sizes: Sequence[tuple[int, int]], max_tokens: int, pass_overhead_tokens: int) -> list[list[int]]:
    """Cut items of (windows, tokens of the longest) into passes, and return the places of each pass's items.

    Items are taken longest first. A pass ends before it has more than *max_tokens* padded tokens, and where its padding
    would cost more than another pass does, which is *pass_overhead_tokens*. An item that is larger than that runs alone.
    """
    passes: list[list[int]] = []
    windows = padding = longest = 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index][1]):
        count, length = sizes[index]
        waste = count * (longest - length)
        if (
            passes
            and (windows + count) * longest <= max_tokens
            and (padding + waste) * longest <= pass_overhead_tokens * PADDING_PARITY_LENGTH
        ):
            passes[-1].append(index)
            windows, padding = windows + count, padding + waste
        else:
            passes.append([index])
            windows, padding, longest = count, 0, length
    return passes

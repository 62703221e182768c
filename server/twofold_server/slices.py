"""Windows of many lengths, cut into forward passes that waste little on padding."""

from __future__ import annotations

from collections.abc import Sequence


def slices(sizes: Sequence[tuple[int, int]], max_tokens: int, pass_tokens: int) -> list[list[int]]:
    """Cut items of (windows, tokens of the longest) into passes, and return the places of each pass's items.

    Items are taken longest first. A pass ends before it has more than *max_tokens* padded tokens, and where its padding
    would cost more than another pass does, which is *pass_tokens*. An item that is larger than that runs alone.
    """
    cut: list[list[int]] = []
    windows = padding = longest = 0
    for place in sorted(range(len(sizes)), key=lambda one: -sizes[one][1]):
        own, length = sizes[place]
        waste = own * (longest - length)
        if cut and (windows + own) * longest <= max_tokens and padding + waste <= pass_tokens:
            cut[-1].append(place)
            windows, padding = windows + own, padding + waste
        else:
            cut.append([place])
            windows, padding, longest = own, 0, length
    return cut

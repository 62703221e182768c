"""Pagination by the key of the last item on the previous page (Google AIP-158)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from twofold_server.errors import InvalidRequestError, Violation

T = TypeVar("T")

DEFAULT_SIZE = 50
MAX_SIZE = 500


def page_size(requested: int) -> int:
    """Return the size of a page. Raises InvalidRequestError."""
    if not 0 <= requested <= MAX_SIZE:
        raise InvalidRequestError(
            Violation("page_size", f"{requested} is out of range; use 1 to {MAX_SIZE}, or 0 for {DEFAULT_SIZE}")
        )
    return requested or DEFAULT_SIZE


def page(items: Sequence[T], key: Callable[[T], str], *, size: int, token: str) -> tuple[Sequence[T], str]:
    """Return the page after the item whose key is *token* (the first page if it is empty), and the next page's token.

    Raises InvalidRequestError if no item has that key.
    """
    size = page_size(size)
    first = 0
    if token:
        matches = [index for index, item in enumerate(items) if key(item) == token]
        if not matches:
            raise InvalidRequestError(
                Violation("page_token", f"invalid token {token!r}; start again with an empty token")
            )
        first = matches[0] + 1
    shown = items[first : first + size]
    more = first + size < len(items)
    return shown, key(shown[-1]) if more else ""


def parse_page_token(token: str) -> int | None:
    """Return the row number after which a page begins; None for the first page. Raises InvalidRequestError."""
    if not token:
        return None
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidRequestError(
            Violation("page_token", f"invalid token {token[:40]!r}; start again with an empty token")
        )
    return int(token)

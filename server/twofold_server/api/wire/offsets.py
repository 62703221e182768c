"""Conversion of code-point offsets to UTF-16 and UTF-8 units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

OffsetUnit = Literal["code_point", "utf16", "utf8"]


def offset_converter(text: str, unit: OffsetUnit) -> Callable[[int], int]:
    """Return a function from a code-point offset in *text* to one in *unit*."""
    if unit == "code_point" or text.isascii():
        return lambda offset: offset
    size = _utf16_size if unit == "utf16" else _utf8_size
    offsets = [0]
    for char in text:
        offsets.append(offsets[-1] + size(char))
    return offsets.__getitem__


def _utf16_size(char: str) -> int:
    return 2 if char > "\uffff" else 1


def _utf8_size(char: str) -> int:
    return len(char.encode("utf-8", "surrogatepass"))

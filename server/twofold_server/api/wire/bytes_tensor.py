"""Raw contents of BYTES tensors: each string follows its length, as four bytes in little-endian order."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from twofold_server.errors import InvalidRequestError, Violation

_LENGTH = struct.Struct("<I")


def write_strings(strings: Iterable[bytes]) -> bytes:
    """Encode strings as raw contents."""
    return b"".join(part for string in strings for part in (_LENGTH.pack(len(string)), string))


def read_strings(raw: bytes, count: int, field: str) -> list[bytes]:
    """Decode exactly *count* strings. Raises InvalidRequestError that names the element of *field*."""
    strings: list[bytes] = []
    position = 0
    for index in range(count):
        if len(raw) - position < _LENGTH.size:
            raise InvalidRequestError(
                Violation(field, f"ends after {index} elements, but the shape says {count}; make them equal")
            )
        (length,) = _LENGTH.unpack_from(raw, position)
        position += _LENGTH.size
        if length > len(raw) - position:
            raise InvalidRequestError(
                Violation(
                    f"{field}[{index}]",
                    f"declares {length} bytes, but only {len(raw) - position} follow; write each element's length as a "
                    "little-endian 32-bit integer, then its bytes",
                )
            )
        strings.append(raw[position : position + length])
        position += length
    if position < len(raw):
        raise InvalidRequestError(
            Violation(
                field,
                f"has {len(raw) - position} more bytes after {count} elements, the number in the shape; make them equal",
            )
        )
    return strings

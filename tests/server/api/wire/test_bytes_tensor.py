"""Raw contents of BYTES tensors."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twofold_server.api.wire.bytes_tensor import read_strings, write_strings
from twofold_server.errors import InvalidRequestError


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=20))
def test_written_strings_are_read_back(strings):
    """Written strings are read back unchanged."""
    assert read_strings(write_strings(strings), len(strings), "raw") == strings


def reference(raw, count):
    """Read strings in the simplest way; None if *raw* is invalid."""
    actual, stream = [], io.BytesIO(raw)
    for _ in range(count):
        length = int.from_bytes(head := stream.read(4), "little")
        string = stream.read(length)
        if len(head) < 4 or len(string) < length:
            return None
        actual.append(string)
    return None if stream.read() else actual


BYTES = st.lists(st.sampled_from([b"\0\0\0\0", b"\1\0\0\0", b"\2\0\0\0", b"\xff\xff\xff\xff", b"a", b"ab"]), max_size=8)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=30), BYTES.map(b"".join)), st.integers(0, 4))
def test_any_bytes_are_read_or_refused(raw, count):
    """Any bytes are read as by the simplest reader, and rejected where that fails."""
    expected = reference(raw, count)
    if expected is None:
        with pytest.raises(InvalidRequestError):
            read_strings(raw, count, "raw")
    else:
        assert read_strings(raw, count, "raw") == expected


@settings(deadline=None)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=5), st.data())
def test_one_byte_more_or_less_is_rejected(strings, data):
    """Raw contents that are truncated or too long are rejected."""
    raw = write_strings(strings)
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (raw[:cut], raw + b"\0"):
        with pytest.raises(InvalidRequestError):
            read_strings(wrong, len(strings), "raw")


WRONG = [
    (b"", 1, r"raw: ends after 0 elements, but the shape says 1"),
    (b"\x01\0\0", 1, r"raw: ends after 0 elements"),
    (b"\x01\0\0\0a", 2, r"raw: ends after 1 elements, but the shape says 2"),
    (b"\x05\0\0\0oslo", 1, r"raw\[0\]: declares 5 bytes, but only 4 follow"),
    (b"\0\0\0\0\xff\xff\xff\xffoslo", 2, r"raw\[1\]: declares 4294967295 bytes, but only 4 follow"),
    (struct.pack(">I", 4) + b"oslo", 1, r"raw\[0\]: .* little-endian 32-bit integer"),
    (b"\0\0\0\0oslo", 1, r"raw: has 4 more bytes after 1 elements"),
]


@pytest.mark.parametrize(("raw", "count", "says"), WRONG)
def test_the_error_names_element_and_length(raw, count, says):
    """The error names the element, its length and the available bytes."""
    with pytest.raises(InvalidRequestError, match=says):
        read_strings(raw, count, "raw")

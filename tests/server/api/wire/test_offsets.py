"""Offsets in other units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twofold_server.api.wire.offsets import offset_converter

ENCODINGS = {"utf16": ("utf-16-le", 2), "utf8": ("utf-8", 1)}


@pytest.mark.parametrize("unit", ENCODINGS)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), data=st.data())
def test_a_slice_is_the_same_text_in_every_unit(unit, text, data):
    """Slicing the encoded text at converted offsets gives the encoded slice."""
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    encoding, size = ENCODINGS[unit]
    offset = offset_converter(text, unit)

    cut = text.encode(encoding)[offset(start) * size : offset(end) * size]

    assert cut.decode(encoding) == text[start:end]


@given(st.text())
def test_code_points_are_unchanged(text):
    """Offsets in code points, and all offsets in ASCII, are unchanged."""
    assert offset_converter(text, "code_point")(len(text)) == len(text)


def test_examples():
    """An emoji has the length one, two or four."""
    assert [offset_converter("😀 oslo", unit)(2) for unit in ("code_point", "utf16", "utf8")] == [2, 3, 5]

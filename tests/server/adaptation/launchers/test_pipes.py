"""Bounded lines from the pipe of a process."""

from __future__ import annotations

import asyncio

import pytest
from twofold_server.adaptation.launchers.pipes import read_lines

LINES: list[tuple[list[bytes], list[bytes | None]]] = [
    ([], []),
    ([b"a\nb\n"], [b"a", b"b"]),
    ([b"a\n", b"b"], [b"a", b"b"]),
    ([b"ab", b"c\nd", b"e\n"], [b"abc", b"de"]),
    ([b"\n\n"], [b"", b""]),
    ([b"12345678\n"], [b"12345678"]),
    ([b"123456789\na\n"], [None, b"a"]),
    ([b"123456789", b"0" * 99, b"0\na\n"], [None, b"a"]),
    ([b"123456789", b"0" * 99], [None]),
]


@pytest.mark.parametrize(("chunks", "expected"), LINES)
async def test_lines_come_whole_however_they_are_cut(chunks: list[bytes], expected: list[bytes | None]) -> None:
    """Lines do not depend on the chunks; a line over the limit gives one None, and the next line is complete."""
    reader = asyncio.StreamReader()

    async def feed() -> None:
        for chunk in chunks:
            reader.feed_data(chunk)
            await asyncio.sleep(0)
        reader.feed_eof()

    feeding = asyncio.create_task(feed())
    actual = [line async for line in read_lines(reader, 8)]
    await feeding
    assert actual == expected

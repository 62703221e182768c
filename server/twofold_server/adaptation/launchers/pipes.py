"""Pipes between a process and the event loop, read line by line within bounds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 2**16


class Pipe:
    """The reading end of a pipe."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        self.reader = reader
        self.is_detached = False
        self._transport = transport

    def detach(self) -> Pipe:
        """Keep the pipe open after the block that opened it ends."""
        self.is_detached = True
        return self

    def close(self) -> None:
        """Close the pipe; readers see end of file."""
        self._transport.close()


@asynccontextmanager
async def open_pipe() -> AsyncIterator[tuple[Pipe, int]]:
    """Yield a pipe, and the descriptor of its writing end for a child process. Closes the descriptor at the end of the block."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    file = os.fdopen(reading, "rb", buffering=0)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    pipe = Pipe(reader, transport)
    try:
        yield pipe, writing
    finally:
        os.close(writing)
        if not pipe.is_detached:
            pipe.close()


async def read_lines(reader: asyncio.StreamReader, limit: int) -> AsyncGenerator[bytes | None, None]:
    """Yield lines without line feeds, and None for each line of more than *limit* bytes."""
    line, too_long = bytearray(), False
    while chunk := await reader.read(_CHUNK):
        *complete, tail = chunk.split(b"\n")
        for piece in complete:
            line += piece
            yield None if too_long or len(line) > limit else bytes(line)
            line, too_long = bytearray(), False
        line += tail
        if len(line) > limit:
            line, too_long = bytearray(), True
    if line or too_long:
        yield None if too_long else bytes(line)

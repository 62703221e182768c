"""Play a case: make the call, and return its outcome."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from fuzzing.cases import Case
from fuzzing.metadata import TOKENS, placeholder
from fuzzing.methods import METHODS
from fuzzing.values import JOB, UPLOAD

QUIET = 0.2
"""Seconds without a response after which nothing more is waited for where responses may never end."""
HANGS = "HANGS"
"""In the place of a code: there was no end to it."""
UNHEARD = "UNHEARD"
"""In the place of a code: the server had answered before all was sent, which grpcio's client takes for a fault of its own."""
EMPTY = "EMPTY"
"""In the place of a code: the call is said to be well, and there is no response."""
_OF_THE_CALLER = "Internal error from Core"
_MADE = re.compile(rb"(?:job|upload)-\d{8}T\d{6}-[0-9a-f]{8}")


@dataclass
class Known:
    """What callers know of the server: the newest job and upload, and the tokens by name."""

    tokens: dict[str, str] = field(default_factory=dict)
    newest: dict[bytes, bytes] = field(default_factory=lambda: {item: item for item in (JOB.encode(), UPLOAD.encode())})

    def fill(self, raw: bytes) -> bytes:
        """Replace the placeholders of a case by existing ids."""
        for stands, made in self.newest.items():
            raw = raw.replace(stands, made)
        return raw

    def sign(self, value: bytes) -> bytes:
        """Replace the placeholder of a token."""
        for name in TOKENS:
            value = value.replace(placeholder(name), self.tokens.get(name, "").encode())
        return value

    def learn(self, response: bytes) -> None:
        """Remember the job or upload of a response."""
        if made := _MADE.search(response):
            stands = JOB if made[0].startswith(b"job") else UPLOAD
            self.newest[stands.encode()] = made[0]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case: status code, details, and duration in seconds."""

    code: str
    message: str
    seconds: float


@dataclass(frozen=True)
class Caller:
    """Plays cases against a server. A call that takes longer than *patience* seconds counts as blocked."""

    channel: grpc.aio.Channel
    ports: dict[str, str]
    known: Known
    patience: float

    async def play(self, case: Case) -> Outcome:
        """Play a case to its end."""
        started_at = time.monotonic()
        try:
            async with asyncio.timeout(self.patience):
                code, message = await (self._knock(case) if case.path in self.ports else self._call(case))
        except TimeoutError:
            code, message = HANGS, f"no end within {self.patience:.0f} s"
        return Outcome(code, message, time.monotonic() - started_at)

    async def _call(self, case: Case) -> tuple[str, str]:
        messages = [self.known.fill(raw) for raw in case.messages]
        how: dict[str, Any] = {
            "timeout": case.timeout,
            "metadata": [_header(name, self.known.sign(value)) for name, value in case.metadata],
            "compression": grpc.Compression.Gzip if case.compressed else None,
        }
        method = METHODS.get(case.path)
        streams = method is not None and (method.streams_requests or method.streams_responses)
        call: Any
        saying: asyncio.Future[None] | None = None
        if len(messages) == 1 and case.play == "whole" and not streams:
            call = self.channel.unary_unary(case.path)(messages[0], **how)
            listening = _listen_once(call)
        else:
            # On the wire a call is one of streams; this one may have no message, or two, where one is expected.
            call = self.channel.stream_stream(case.path)(**how)
            listening = _listen(call, case, endless=never_ends(case))
            saying = asyncio.ensure_future(_say(call, messages, hold=case.play == "open"))
        response: bytes | None
        try:
            response = await listening
            if response is None:
                return EMPTY, f"{(await call.code()).name} and no response"
            if case.path.endswith(("/Adapt", "/UploadDataset")):
                self.known.learn(response)
        except grpc.aio.AioRpcError:
            pass
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not call.cancelled() or (task is not None and task.cancelling()):
                raise
        finally:
            call.cancel()
            if saying:
                saying.cancel()
                await asyncio.wait([saying])
        code, message = (await call.code()).name, await call.details() or ""
        return (UNHEARD if message == _OF_THE_CALLER else code), message

    async def _knock(self, case: Case) -> tuple[str, str]:
        """Send bytes to a port, and read the immediate answer."""
        host, _, port = self.ports[case.path].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = b""
        with suppress(ConnectionError):  # The server may well hang up.
            for part in case.messages:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(case.pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    answer = await reader.read(1 << 16)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        actual = re.match(rb"HTTP/\S+ (\d{3})", answer)
        return f"HTTP_{actual[1].decode()}" if actual else "BYTES" if answer else "NOTHING", ""


def never_ends(case: Case) -> bool:
    """Return whether a call may last until its caller leaves.

    A unary call without its request may: grpcio's server waits for it, even after the caller has closed its side.
    """
    method = METHODS.get(case.path)
    return method is not None and (method.is_open_ended or not (case.messages or method.streams_requests))


def _header(name: str, value: bytes) -> tuple[str, str | bytes]:
    return name, value if name.endswith("-bin") else value.decode("ascii")


async def _say(call: Any, messages: list[bytes], *, hold: bool) -> None:
    """Send messages while the server reads, and close the stream unless the case says otherwise."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for message in messages:
            await call.write(message)
        if not hold:
            await call.done_writing()


async def _listen_once(call: Any) -> bytes | None:
    return await call


async def _listen(call: Any, case: Case, *, endless: bool) -> bytes:
    """Read responses as the case says, and return the last one."""
    if case.play in {"cancel", "deaf"}:
        await asyncio.sleep(case.pause)
        if case.play == "deaf":
            await asyncio.sleep(QUIET)
        call.cancel()
        return b""
    last = b""
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(QUIET if endless or case.play == "open" else None):
                response = await call.read()
            if response is grpc.aio.EOF:
                break
            last = response
    return last

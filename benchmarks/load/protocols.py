"""The ways to ask a server about texts: Twofold's own, the Open Inference Protocol, and JSON over HTTP/1.1.

Each writes its requests beforehand and reads answers with the cheapest library there is, so that the caller takes as little
as it can of the cores that it shares with the server.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import grpc
from twofold import status
from twofold.v1 import inference_pb2 as pb

Answer = tuple[str, list[tuple[int, int, str]]]
"""A text's label, and start, end and type of its entities."""


class CallError(Exception):
    """A call that came back with something else than an answer. Its text is the kind of failure."""


class Wire(Protocol):
    """One connection to a server, or several."""

    def write(self, texts: Sequence[str]) -> bytes:
        """Make a request."""

    async def send(self, request: bytes) -> Any:
        """Send a request and return the answers as they were read. Raises CallError."""

    def answers(self, response: Any) -> list[Answer]:
        """Tell what a response says."""

    def count(self, response: Any) -> int:
        """Tell how many texts a response answers."""


class _Grpc:
    """Send bytes to a method, and read what comes back."""

    def __init__(self, channel: grpc.aio.Channel, method: str, read: Callable[[bytes], Any]) -> None:
        self._call = channel.unary_unary(method, response_deserializer=read)

    async def send(self, request: bytes) -> Any:
        try:
            return await self._call(request)
        except grpc.aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ()).get(status.METADATA_KEY)
            told = details is not None and status.decode_status(details).retry_after is not None
            raise CallError(f"{error.code().name}{' with RetryInfo' if told else ''}") from error


class TwofoldWire(_Grpc):
    """Speak twofold.v1.InferenceService."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel, "/twofold.v1.InferenceService/Predict", pb.PredictResponse.FromString)

    def write(self, texts: Sequence[str]) -> bytes:
        """Make a PredictRequest."""
        return pb.PredictRequest(texts=texts).SerializeToString()

    def answers(self, response: pb.PredictResponse) -> list[Answer]:
        """Read a PredictResponse."""
        return [
            (one.label, [(entity.start, entity.end, entity.type) for entity in one.entities])
            for one in response.predictions
        ]

    def count(self, response: pb.PredictResponse) -> int:
        """Count the predictions."""
        return len(response.predictions)


class OpenInferenceWire(_Grpc):
    """Speak inference.GRPCInferenceService: texts go as BYTES (texts, 1), answers come as BYTES that hold JSON."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        from tritonclient.grpc import service_pb2  # noqa: PLC0415 -- only who asks peers has it.

        self._pb = service_pb2
        super().__init__(channel, "/inference.GRPCInferenceService/ModelInfer", self._read)

    def write(self, texts: Sequence[str]) -> bytes:
        """Make a ModelInferRequest."""
        encoded = [text.encode() for text in texts]
        request = self._pb.ModelInferRequest(
            model_name="twofold", raw_input_contents=[b"".join(struct.pack("<I", len(one)) + one for one in encoded)]
        )
        request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
        found: bytes = request.SerializeToString()
        return found

    def _read(self, response: bytes) -> list[Any]:
        """Read a ModelInferResponse, whose answers are raw or typed."""
        message = self._pb.ModelInferResponse.FromString(response)
        if not message.raw_output_contents:
            return [json.loads(one) for one in message.outputs[0].contents.bytes_contents]
        raw, found, place = message.raw_output_contents[0], [], 0
        while place < len(raw):
            (length,) = struct.unpack_from("<I", raw, place)
            found.append(json.loads(raw[place + 4 : place + 4 + length]))
            place += 4 + length
        return found

    def answers(self, response: list[Any]) -> list[Answer]:
        """Read the JSON."""
        return [_read_json(one) for one in response]

    def count(self, response: list[Any]) -> int:
        """Count the answers."""
        return len(response)


class HttpWire:
    """POST JSON over connections that are kept: {"texts": [...]} becomes a list of answers.

    A connection carries one request at a time; there are as many as there were calls out at once.
    """

    def __init__(self, target: str, path: str = "/predict") -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._head = f"POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/json\r\nContent-Length: "
        self._free: list[_Connection] = []
        self.opened: list[_Connection] = []

    def write(self, texts: Sequence[str]) -> bytes:
        """Make a request."""
        body = json.dumps({"texts": list(texts)}).encode()
        return f"{self._head}{len(body)}\r\n\r\n".encode() + body

    async def send(self, request: bytes) -> Any:
        """Send a request on a connection that is free."""
        connection = self._free.pop() if self._free else await self._open()
        try:
            code, body = await connection.ask(request)
        except ConnectionError as error:
            raise CallError("connection lost") from error
        self._free.append(connection)
        if code != 200:
            raise CallError(f"HTTP {code}")
        return json.loads(body)

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        self.opened.append(connection)
        return connection

    def answers(self, response: list[Any]) -> list[Answer]:
        """Read the JSON."""
        return [_read_json(one) for one in response]

    def count(self, response: list[Any]) -> int:
        """Count the answers."""
        return len(response)


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, read by httptools."""

    def __init__(self) -> None:
        import httptools  # noqa: PLC0415 -- only who asks peers has it.

        self._make = httptools.HttpResponseParser
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionError("closed by the server"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        if self.transport.is_closing():
            raise ConnectionError("closed by the server")
        self._parser, self._body = self._make(self), b""
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._waiting

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result((self._parser.get_status_code(), self._body))


def _read_json(answer: Any) -> Answer:
    entities = [(entity["start"], entity["end"], entity["type"]) for entity in answer["entities"]]
    return answer["labels"][0]["label"], entities


@asynccontextmanager
async def _grpc(wire: Callable[[grpc.aio.Channel], Wire], target: str) -> AsyncIterator[Wire]:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield wire(channel)


@asynccontextmanager
async def _http(target: str) -> AsyncIterator[Wire]:
    wire = HttpWire(target)
    try:
        yield wire
    finally:
        for connection in wire.opened:
            connection.transport.close()


WIRES: dict[str, Callable[[str], AbstractAsyncContextManager[Wire]]] = {
    "twofold": lambda target: _grpc(TwofoldWire, target),
    "open_inference": lambda target: _grpc(OpenInferenceWire, target),
    "http": _http,
}

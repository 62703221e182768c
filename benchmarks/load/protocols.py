"""The protocols of the load generator: Twofold's gRPC API, the Open Inference Protocol, and JSON over HTTP/1.1.

Requests are serialised beforehand and answers are parsed by the fastest available library, to use little of the cores shared
with the server.
"""

from __future__ import annotations

import asyncio
import json
import struct
import typing
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
from twofold import status
from twofold.v1 import inference_pb2 as pb

Answer = tuple[str, list[tuple[int, int, str]]]
"""A text's label, and the start, end and type of each entity."""


class CallError(Exception):
    """A failed call. The message is the kind of failure."""


class Protocol(typing.Protocol):
    """A client of a server over one or more connections."""

    def write(self, texts: Sequence[str]) -> bytes:
        """Serialise a request."""

    async def send(self, request: bytes) -> Any:
        """Send a request and return the parsed response. Raises CallError."""

    def answers(self, response: Any) -> list[Answer]:
        """Return the answers of a response."""

    def count(self, response: Any) -> int:
        """Return the number of texts that a response answers."""


class _Grpc:
    """Call a gRPC method with serialised requests."""

    def __init__(self, channel: grpc.aio.Channel, method: str, read: Callable[[bytes], Any]) -> None:
        self._call = channel.unary_unary(method, response_deserializer=read)

    async def send(self, request: bytes) -> Any:
        try:
            return await self._call(request)
        except grpc.aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ()).get(status.METADATA_KEY)
            has_retry_info = details is not None and status.decode_status(details).retry_after is not None
            raise CallError(f"{error.code().name}{' with RetryInfo' if has_retry_info else ''}") from error


class TwofoldProtocol(_Grpc):
    """Call twofold.v1.InferenceService."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel, "/twofold.v1.InferenceService/Predict", pb.PredictResponse.FromString)

    def write(self, texts: Sequence[str]) -> bytes:
        """Serialise a PredictRequest."""
        return pb.PredictRequest(texts=texts).SerializeToString()

    def answers(self, response: pb.PredictResponse) -> list[Answer]:
        """Return the answers of a PredictResponse."""
        return [
            (prediction.label, [(entity.start, entity.end, entity.type) for entity in prediction.entities])
            for prediction in response.predictions
        ]

    def count(self, response: pb.PredictResponse) -> int:
        """Count the predictions."""
        return len(response.predictions)


class OpenInferenceProtocol(_Grpc):
    """Call inference.GRPCInferenceService: texts are BYTES (texts, 1), answers are BYTES that hold JSON."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        from tritonclient.grpc import service_pb2  # noqa: PLC0415 -- installed for the peers only.

        self._pb = service_pb2
        super().__init__(channel, "/inference.GRPCInferenceService/ModelInfer", self._read)

    def write(self, texts: Sequence[str]) -> bytes:
        """Serialise a ModelInferRequest."""
        encoded = [text.encode() for text in texts]
        content = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
        request = self._pb.ModelInferRequest(model_name="twofold", raw_input_contents=[content])
        request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
        serialised: bytes = request.SerializeToString()
        return serialised

    def _read(self, response: bytes) -> list[Any]:
        """Parse a ModelInferResponse with raw or typed contents."""
        message = self._pb.ModelInferResponse.FromString(response)
        if not message.raw_output_contents:
            return [json.loads(content) for content in message.outputs[0].contents.bytes_contents]
        raw, answers, offset = message.raw_output_contents[0], [], 0
        while offset < len(raw):
            (length,) = struct.unpack_from("<I", raw, offset)
            answers.append(json.loads(raw[offset + 4 : offset + 4 + length]))
            offset += 4 + length
        return answers

    def answers(self, response: list[Any]) -> list[Answer]:
        """Return the answers of parsed JSON."""
        return [_read_json(answer) for answer in response]

    def count(self, response: list[Any]) -> int:
        """Count the answers."""
        return len(response)


class HttpProtocol:
    """POST {"texts": [...]} over keep-alive connections; the response is a list of answers.

    A connection carries one request at a time, so there are as many connections as concurrent calls.
    """

    def __init__(self, target: str, path: str = "/predict") -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._head = f"POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/json\r\nContent-Length: "
        self._idle: list[_Connection] = []
        self.opened: list[_Connection] = []

    def write(self, texts: Sequence[str]) -> bytes:
        """Serialise a request."""
        body = json.dumps({"texts": list(texts)}).encode()
        return f"{self._head}{len(body)}\r\n\r\n".encode() + body

    async def send(self, request: bytes) -> Any:
        """Send a request on an idle connection."""
        connection = self._idle.pop() if self._idle else await self._open()
        try:
            code, body = await connection.request(request)
        except ConnectionError as error:
            raise CallError("connection lost") from error
        self._idle.append(connection)
        if code != 200:
            raise CallError(f"HTTP {code}")
        return json.loads(body)

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        self.opened.append(connection)
        return connection

    def answers(self, response: list[Any]) -> list[Answer]:
        """Return the answers of parsed JSON."""
        return [_read_json(answer) for answer in response]

    def count(self, response: list[Any]) -> int:
        """Count the answers."""
        return len(response)


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, parsed by httptools."""

    def __init__(self) -> None:
        import httptools  # noqa: PLC0415 -- installed for the peers only.

        self._make_parser = httptools.HttpResponseParser
        self._response: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response and not self._response.done():
            self._response.set_exception(exc or ConnectionError("closed by the server"))

    async def request(self, request: bytes) -> tuple[int, bytes]:
        if self.transport.is_closing():
            raise ConnectionError("closed by the server")
        self._parser, self._body = self._make_parser(self), b""
        self._response = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._response

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._response and not self._response.done():
            self._response.set_result((self._parser.get_status_code(), self._body))


def _read_json(answer: Any) -> Answer:
    entities = [(entity["start"], entity["end"], entity["type"]) for entity in answer["entities"]]
    return answer["labels"][0]["label"], entities


@asynccontextmanager
async def _grpc(protocol: Callable[[grpc.aio.Channel], Protocol], target: str) -> AsyncIterator[Protocol]:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield protocol(channel)


@asynccontextmanager
async def _http(target: str) -> AsyncIterator[Protocol]:
    protocol = HttpProtocol(target)
    try:
        yield protocol
    finally:
        for connection in protocol.opened:
            connection.transport.close()


PROTOCOLS: dict[str, Callable[[str], AbstractAsyncContextManager[Protocol]]] = {
    "twofold": lambda target: _grpc(TwofoldProtocol, target),
    "open_inference": lambda target: _grpc(OpenInferenceProtocol, target),
    "http": _http,
}

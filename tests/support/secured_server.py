"""Tokens for callers, and the methods that a running server serves to them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha import reflection_pb2_grpc
from support.running_server import refusal
from twofold.status import Status
from twofold_server.security.tokens import make_token


@dataclass
class Callers:
    """A file of tokens, and the tokens by name."""

    path: Path
    tokens: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *scopes: Any, rate: float | None = None) -> str:
        """Create a token, add its line to the file, and return it."""
        self.tokens[name], self.lines[name] = make_token(name, scopes, rate)
        self.write()
        return self.tokens[name]

    def write(self, text: str | None = None) -> None:
        """Replace the file atomically, by its lines or by another text."""
        new = self.path.with_suffix(".new")
        new.write_text("\n".join(self.lines.values()) if text is None else text, encoding="utf-8")
        new.rename(self.path)

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call with a token."""
        return (("authorization", f"Bearer {self.tokens[name]}"),)


@dataclass(frozen=True)
class Procedure:
    """A served method, by its path."""

    path: str
    streams_requests: bool
    streams_responses: bool

    def call(self, channel: grpc.aio.Channel, raw: bytes = b"", **arguments: Any) -> Any:
        """Start a call with one request of raw bytes."""
        arity = f"{'stream' if self.streams_requests else 'unary'}_{'stream' if self.streams_responses else 'unary'}"
        return getattr(channel, arity)(self.path)(iter([raw]) if self.streams_requests else raw, **arguments)

    async def answer(self, channel: grpc.aio.Channel, raw: bytes = b"", **arguments: Any) -> tuple[str, Status | None]:
        """Return the name of the status code, "OK" for an answer, and the details if there are any."""
        call = self.call(channel, raw, timeout=20, **arguments)

        async def first() -> Any:
            return await call.read() if self.streams_responses else await call

        try:
            code, error = await refusal(first())
        except AssertionError:  # It was answered.
            call.cancel()
            return "OK", None
        return code.name, error


async def served(channel: grpc.aio.Channel, metadata: Any = None) -> list[Procedure]:
    """Return all methods that a server serves, from its reflection."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**fields: Any) -> pb.ServerReflectionResponse:
        request = pb.ServerReflectionRequest(**fields)
        return await stub.ServerReflectionInfo(iter([request]), metadata=metadata).read()

    names = {item.name for item in (await ask(list_services="")).list_services_response.service}
    actual = {}
    for answer in await asyncio.gather(*(ask(file_containing_symbol=name) for name in names)):
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            for service in file.service:
                for item in service.method if f"{file.package}.{service.name}" in names else ():
                    path = f"/{file.package}.{service.name}/{item.name}"
                    actual[path] = Procedure(path, item.client_streaming, item.server_streaming)
    return list(actual.values())

"""grpc.health.v1 for load balancers and probes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio


class Health:
    """Say whether the server answers: for the server as a whole (the empty name) and for each service.

    SERVING is reported only after it is true, and NOT_SERVING before it stops being true.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = _Servicer()
        self._names = ("", *services)
        self.ready = False
        """Whether SERVING was the last word."""
        self._left = False

    async def attach(self, server: grpc.aio.Server) -> None:
        """Serve health, as not serving at first."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def serving(self) -> None:
        """Say that the server answers."""
        self.ready = not self._left
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def leaving(self) -> None:
        """Report NOT_SERVING for good, because the server is shutting down."""
        self.ready, self._left = False, True
        await self._servicer.enter_graceful_shutdown()

    async def hang_up(self) -> None:
        """End the watches, which would otherwise keep the server from stopping; their watchers have heard."""
        await self._servicer.hang_up()

    async def _say(self, state: int) -> None:
        for name in self._names:
            await self._servicer.set(name, state)


class _Servicer(aio.HealthServicer):  # type: ignore[misc] # grpcio-health-checking has no types.
    """The servicer of grpcio, whose watches can be ended from here."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Report the state now and whenever it changes."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait([watch])
        finally:
            self._watches.discard(watch)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def List(self, request: Any, context: Any) -> health_pb2.HealthListResponse:  # noqa: ARG002, N802
        """Report the states of all services at once, which grpcio leaves to its users."""
        states = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._server_status.items()}
        return health_pb2.HealthListResponse(statuses=states)

    async def hang_up(self) -> None:
        """End every watch that runs now."""
        for watch in self._watches:
            watch.cancel()

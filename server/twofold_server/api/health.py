"""grpc.health.v1 for load balancers and probes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio


class Health:
    """Report the health of the server (the empty service name) and of each service.

    SERVING is reported only after it is true, and NOT_SERVING before it stops being true.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = _Servicer()
        self._services = ("", *services)
        self.ready = False
        """Whether the last reported status was SERVING."""
        self._shutting_down = False

    async def attach(self, server: grpc.aio.Server) -> None:
        """Register the service on *server*, with NOT_SERVING as the first status."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        await self._set_status(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def set_serving(self) -> None:
        """Report SERVING."""
        self.ready = not self._shutting_down
        await self._set_status(health_pb2.HealthCheckResponse.SERVING)

    async def start_shutdown(self) -> None:
        """Report NOT_SERVING for good, because the server is shutting down."""
        self.ready, self._shutting_down = False, True
        await self._servicer.enter_graceful_shutdown()

    async def close_streams(self) -> None:
        """End the Watch streams, which would otherwise delay the shutdown. They have already sent NOT_SERVING."""
        await self._servicer.close_streams()

    async def _set_status(self, state: int) -> None:
        for name in self._services:
            await self._servicer.set(name, state)


class _Servicer(aio.HealthServicer):  # type: ignore[misc] # grpcio-health-checking has no types.
    """grpcio's health servicer, with Watch streams that the server can end, and with List."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Stream the current status and every change."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait([watch])
        finally:
            self._watches.discard(watch)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def List(self, request: Any, context: Any) -> health_pb2.HealthListResponse:  # noqa: ARG002, N802
        """Return the status of every service, which grpcio does not implement."""
        states = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._server_status.items()}
        return health_pb2.HealthListResponse(statuses=states)

    async def close_streams(self) -> None:
        """End every open Watch stream."""
        for watch in self._watches:
            watch.cancel()

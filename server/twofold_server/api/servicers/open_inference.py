"""The Open Inference Protocol's GRPCInferenceService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from twofold.open_inference import open_inference_pb2 as pb
from twofold.open_inference.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from twofold_checkpoint.store import Store

from twofold_server import VERSION
from twofold_server.api.health import Health
from twofold_server.api.servicers.inference import deadline_of
from twofold_server.api.wire.open_inference import MODEL, check_model, read_infer, write_infer, write_metadata
from twofold_server.api.wire.open_inference_extensions import (
    check_repository,
    read_load,
    write_config,
    write_index,
    write_statistics,
)
from twofold_server.config.settings import LimitSettings
from twofold_server.errors import UnknownNameError, UnsupportedError
from twofold_server.inference.predictor import Predictor
from twofold_server.inference.slot import Slot
from twofold_server.observability.audit import annotate, caller_of
from twofold_server.observability.metrics import Metrics
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.promoter import Promoter

EXTENSIONS = ("model_configuration", "model_repository", "statistics")

_USE_RAW_CONTENTS = "use raw contents"
UNSUPPORTED = {
    "ModelStreamInfer": "call ModelInfer, or twofold.v1.InferenceService.PredictStream",
    "RepositoryModelUnload": "promoting another checkpoint unloads the live one: call RepositoryModelLoad",
    "SystemSharedMemoryStatus": _USE_RAW_CONTENTS,
    "SystemSharedMemoryRegister": _USE_RAW_CONTENTS,
    "SystemSharedMemoryUnregister": _USE_RAW_CONTENTS,
    "CudaSharedMemoryStatus": _USE_RAW_CONTENTS,
    "CudaSharedMemoryRegister": _USE_RAW_CONTENTS,
    "CudaSharedMemoryUnregister": _USE_RAW_CONTENTS,
    "TraceSetting": "see the metrics of the server",
    "LogSettings": "start the server with --log-level",
}
"""Triton methods that are not supported, and what to use instead."""


class OpenInferenceServicer(GRPCInferenceServiceServicer):
    """Serves the live checkpoint as the model "twofold", and the store as its repository."""

    def __init__(
        self,
        *,
        inference: Predictor,
        slot: Slot,
        limits: LimitSettings,
        metrics: Metrics,
        store: Store,
        promoter: Promoter,
        health: Health,
    ) -> None:
        self._inference = inference
        self._slot = slot
        self._limits = limits
        self._metrics = metrics
        self._store = store
        self._promoter = promoter
        self._health = health

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the methods, and reject Triton's other methods with a hint."""
        add_GRPCInferenceServiceServicer_to_server(self, server)
        service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
        handlers = {name: _unsupported(name, hint) for name, hint in UNSUPPORTED.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:  # noqa: ARG002, N802
        """Return that the server is live."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:  # noqa: ARG002, N802
        """Return whether a checkpoint is live."""
        return pb.ServerReadyResponse(ready=self._health.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:  # noqa: ARG002, N802
        """Return whether the model, or a version of it, is live."""
        known = request.name == MODEL and request.version in {"", self._live()}
        return pb.ModelReadyResponse(ready=known and self._health.ready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:  # noqa: ARG002, N802
        """Return the server's name, version and extensions."""
        return pb.ServerMetadataResponse(name="twofold", version=VERSION, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:  # noqa: ARG002, N802
        """Return the model's tensors."""
        self._check(request.name, request.version)
        return write_metadata([self._live()] if self._live() else [])

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> pb.ModelConfigResponse:  # noqa: ARG002, N802
        """Return the model's configuration in Triton's terms."""
        self._check(request.name, request.version)
        return pb.ModelConfigResponse(config=write_config(self._limits))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """Classify texts and find their entities."""
        call = read_infer(request, self._limits)
        if self._slot.live is not None:
            self._check_version(call.version, "model_version")
        answers = await self._inference.predict(
            call.texts,
            top=int(call.requests_any("label", "label_score")),
            entities=call.requests_any("entities"),
            deadline=min(deadline_of(context), time.monotonic() + call.timeout),
        )
        for checkpoint_id in answers.checkpoint_ids:  # A swap may have happened before the texts were answered.
            if call.version and checkpoint_id != call.version:
                raise _not_live("model_version", call.version, checkpoint_id)
        self._metrics.texts.labels("ModelInfer").inc(len(call.texts))
        return write_infer(call, answers)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Any) -> pb.ModelStatisticsResponse:  # noqa: ARG002, N802
        """Return counts since the server started."""
        self._check(request.name or MODEL, request.version)
        return pb.ModelStatisticsResponse(model_stats=[write_statistics(self._metrics, self._live())])

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Any) -> pb.RepositoryIndexResponse:  # noqa: ARG002, N802
        """Return the checkpoints."""
        check_repository(request.repository_name)
        checkpoints, aliases = await asyncio.to_thread(lambda: (self._store.list(), self._store.aliases()))
        return write_index(checkpoints, aliases, self._live(), only_ready=request.ready)

    async def RepositoryModelLoad(  # noqa: N802
        self,
        request: pb.RepositoryModelLoadRequest,
        context: Any,
    ) -> pb.RepositoryModelLoadResponse:
        """Make a checkpoint live."""
        name = read_load(request)
        annotate(checkpoint=name)
        promotion = await self._promoter.promote(
            name, Author(caller_of(context), "RepositoryModelLoad was called."), approve=True
        )
        annotate(checkpoint=promotion.checkpoint.id)
        return pb.RepositoryModelLoadResponse()

    def _live(self) -> str:
        """Return the id of the live checkpoint; empty if there is none."""
        engine = self._slot.live
        return "" if engine is None else engine.id

    def _check(self, name: str, version: str) -> None:
        check_model(name, "name")
        self._check_version(version, "version")

    def _check_version(self, version: str, field: str) -> None:
        if version not in {"", self._live()}:
            raise _not_live(field, version, self._live())


def _not_live(field: str, version: str, live: str) -> UnknownNameError:
    state = f"the live checkpoint is {live!r}" if live else "no checkpoint is live"
    return UnknownNameError(f"{field}: {version[:100]!r} is not live; {state}; leave it empty for the live checkpoint")


def _unsupported(method: str, hint: str) -> grpc.RpcMethodHandler[Any, Any]:
    error = f"{method} is not supported; {hint}"

    async def fail(request: Any, context: Any) -> Any:  # noqa: ARG001
        raise UnsupportedError(error)

    async def fail_stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        yield await fail(requests, context)

    if method == "ModelStreamInfer":
        return grpc.stream_stream_rpc_method_handler(fail_stream)
    return grpc.unary_unary_rpc_method_handler(fail)

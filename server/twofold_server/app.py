"""The composition root: constructs every part of the server in order, and shuts them down in reverse."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from twofold.open_inference import open_inference_pb2
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2
from twofold.v1.adaptation_pb2_grpc import add_AdaptationServiceServicer_to_server
from twofold.v1.checkpoints_pb2_grpc import add_CheckpointServiceServicer_to_server
from twofold.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from twofold_checkpoint.errors import CheckpointError, CheckpointNotFoundError
from twofold_checkpoint.store import Store

from twofold_server.adaptation.launchers.subprocess import SubprocessLauncher
from twofold_server.adaptation.preemption import JobPreemptor
from twofold_server.adaptation.runner import JobRunner
from twofold_server.adaptation.uploads import Uploads
from twofold_server.api.health import Health
from twofold_server.api.http.job_pages import JobPages
from twofold_server.api.http.server import serve_http
from twofold_server.api.interceptor import ServerInterceptor
from twofold_server.api.reflection import enable_reflection
from twofold_server.api.servicers.adaptation import AdaptationServicer
from twofold_server.api.servicers.checkpoints import CheckpointServicer
from twofold_server.api.servicers.inference import InferenceServicer
from twofold_server.api.servicers.open_inference import OpenInferenceServicer
from twofold_server.config.settings import Config, EngineSettings, TracingSettings
from twofold_server.errors import FailedPreconditionError, SwapError
from twofold_server.inference.batcher import Batcher
from twofold_server.inference.engine import Engine
from twofold_server.inference.predictor import Predictor
from twofold_server.inference.slot import Slot
from twofold_server.jobs.repository import JobRepository
from twofold_server.jobs.tracing import job_span
from twofold_server.observability.gpu_metrics import export_gpu_metrics
from twofold_server.observability.interference import Interference
from twofold_server.observability.metrics import Metrics
from twofold_server.observability.tracing import Tracer
from twofold_server.report.reporter import Reporter
from twofold_server.resources.cpus import count_cpus, split_cpus
from twofold_server.retention.deletion import Deleter
from twofold_server.retention.garbage_collector import GarbageCollector
from twofold_server.security.authorization import Authorizer
from twofold_server.security.tls import credentials_of, load_certificates
from twofold_server.versions.loader import load_engine
from twofold_server.versions.promoter import Promoter
from twofold_server.versions.rollback_monitor import RollbackMonitor
from twofold_server.versions.shadow_test import ShadowTest
from twofold_server.versions.shadow_traffic import ShadowTraffic

log = logging.getLogger(__name__)

_DESCRIPTORS = tuple(
    file.DESCRIPTOR.services_by_name[name]
    for file, name in (
        (inference_pb2, "InferenceService"),
        (adaptation_pb2, "AdaptationService"),
        (checkpoints_pb2, "CheckpointService"),
        (open_inference_pb2, "GRPCInferenceService"),
    )
)
SERVICES = tuple(service.full_name for service in _DESCRIPTORS)
METHODS = tuple(method.name for service in _DESCRIPTORS for method in service.methods)
LOAD_CHECKED = (
    "/twofold.v1.InferenceService/Predict",
    "/twofold.v1.InferenceService/Embed",
    "/inference.GRPCInferenceService/ModelInfer",
)
"""Procedures that are rejected under load. A stream waits instead."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The addresses of a running server."""

    target: str
    metrics_url: str


@asynccontextmanager
async def serve(config: Config, tracer: Tracer | None = None) -> AsyncIterator[Serving]:  # noqa: PLR0915 -- the wiring is one list on purpose.
    """Serve until the block ends, then drain: calls in progress are answered, new ones are refused.

    *tracer* replaces the one that the settings configure.
    """
    listener, limits = config.listener, config.limits
    async with AsyncExitStack() as cleanup:
        if tracer := tracer or make_tracer(config.tracing):
            cleanup.push_async_callback(asyncio.to_thread, tracer.close)
        metrics = Metrics()
        await asyncio.to_thread(export_gpu_metrics, metrics)
        store = Store(config.store).create()
        slot = Slot(metrics)
        cleanup.push_async_callback(asyncio.to_thread, slot.drain)
        if (engine := await asyncio.to_thread(first_engine, store, config.engine)) is not None:
            slot.swap(engine)

        jobs = JobRepository(
            config.database or store.root / "jobs.sqlite3",
            metrics,
            on_end=(lambda job: tracer.add_finished(job_span(job))) if tracer else None,
        )
        reporter = Reporter(store, jobs)
        uploads = Uploads(store, max_examples=config.jobs.max_dataset_examples)

        health = Health(SERVICES)
        # Shadow traffic runs only while no live text waits. It reads the batcher, which is constructed later because it
        # takes the rollback monitor as a listener.
        shadow = ShadowTraffic(metrics, lambda: batcher.is_busy, limits.max_batch_tokens)
        rollback_monitor = RollbackMonitor(config.rollback, slot, shadow, metrics, on_rollback=reporter.record_rollback)
        promoter = Promoter(
            store,
            slot,
            config.engine,
            config.rollback,
            metrics,
            on_live=health.set_serving,
            swap_listener=rollback_monitor,
            record=jobs.record_alias_change,
        )
        shadow_test = ShadowTest(config.shadow, config.rollback, slot, shadow, promoter)
        runner = JobRunner(
            settings=config.jobs,
            is_shared=config.database is not None,
            store=store,
            jobs=jobs,
            reporter=reporter,
            uploads=uploads,
            promoter=promoter,
            metrics=metrics,
            launcher=SubprocessLauncher(config.trainer, store.root),
            shadow_test=shadow_test,
        )
        preemptor = (
            JobPreemptor(runner, threshold_ms / 1000) if (threshold_ms := config.jobs.preempt_above_ms) else None
        )

        cpus = await asyncio.to_thread(count_cpus)
        batcher = Batcher(
            slot,
            metrics,
            max_batch_tokens=limits.max_batch_tokens,
            max_queue_tokens=limits.max_queue_tokens,
            max_wait=limits.max_wait_ms / 1000 or float("inf"),
            passes=split_cpus(cpus, config.engine.device, passes=config.engine.passes).passes,
            listeners=(rollback_monitor, Interference(metrics, lambda: runner.is_running)),
            tracer=tracer,
        )
        predictor = Predictor(
            slot,
            batcher,
            metrics,
            max_requests=limits.max_requests,
            threads=cpus,
            mirror=shadow,
            listeners=(preemptor,) if preemptor else (),
            tracer=tracer,
        )
        batcher.start()
        cleanup.push_async_callback(batcher.stop)
        cleanup.callback(predictor.stop)
        cleanup.push_async_callback(promoter.stop)
        cleanup.push_async_callback(rollback_monitor.stop)

        authorizer = await asyncio.to_thread(Authorizer, tokens, metrics) if (tokens := listener.tokens) else None
        interceptor = ServerInterceptor(
            metrics, METHODS, authorizer, tracer, dict.fromkeys(LOAD_CHECKED, predictor.check_room)
        )
        server = grpc.aio.server(
            interceptors=[interceptor],
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # A second server on the same port must fail.
            ],
        )
        await health.attach(server)
        add_InferenceServiceServicer_to_server(InferenceServicer(predictor, slot, limits, metrics), server)
        deleter = Deleter(store, slot, jobs)
        add_CheckpointServiceServicer_to_server(CheckpointServicer(store, jobs, promoter, deleter), server)
        add_AdaptationServiceServicer_to_server(AdaptationServicer(runner, jobs, reporter, uploads), server)
        OpenInferenceServicer(
            inference=predictor,
            slot=slot,
            limits=limits,
            metrics=metrics,
            store=store,
            promoter=promoter,
            health=health,
        ).add_to(server)
        enable_reflection((*SERVICES, "grpc.health.v1.Health"), server)

        pages = JobPages(jobs, reporter, authorizer, plaintext=listener.plaintext)
        tls = load_certificates(config.tls) if listener.metrics_tls else None
        metrics_url = cleanup.enter_context(serve_http(metrics, listener.metrics_listen, pages.wrap, tls))
        port = _listen(server, config)
        cleanup.push_async_callback(server.stop, listener.drain_timeout)
        # Open-ended streams would delay the shutdown until the drain timeout.
        cleanup.push_async_callback(health.close_streams)
        cleanup.callback(interceptor.close_streams)
        # Stop jobs before calls: a stopped job sends its last event to its watchers.
        await runner.start()
        cleanup.push_async_callback(runner.stop)
        if preemptor:
            _run_in_background(cleanup, preemptor.run(), "preemption")
        collector = GarbageCollector(
            settings=config.retention, store=store, slot=slot, jobs=jobs, deleter=deleter, metrics=metrics
        )
        _run_in_background(cleanup, collector.run(), "collector")
        await server.start()
        if engine is not None:
            await health.set_serving()
        cleanup.push_async_callback(_announce_shutdown, health, listener.drain_delay)

        target = f"{listener.listen.rpartition(':')[0]}:{port}"
        log.info("listening", extra={"target": target, "metrics": metrics_url, "checkpoint": engine and engine.id})
        yield Serving(target, metrics_url)
        log.info("draining")


def first_engine(store: Store, settings: EngineSettings) -> Engine | None:
    """Load the current checkpoint, or the previous one if it is damaged; None if neither can serve."""
    for alias in ("current", "previous"):
        try:
            engine = load_engine(store.get(alias), settings)
        except CheckpointNotFoundError as error:
            log.warning("no checkpoint to serve", extra={"alias": alias, "reason": str(error)})
        except (CheckpointError, SwapError) as error:
            log.error("a checkpoint cannot be served", extra={"alias": alias, "reason": str(error)})  # noqa: TRY400 -- expected; a traceback would not help.
        else:
            if alias == "previous":
                log.error("serving the previous checkpoint", extra={"checkpoint": engine.id})
            return engine
    root = store.root.absolute()
    log.warning(
        "no checkpoint is live in %s, so calls get UNAVAILABLE until one is promoted; make a first one with"
        " twofold-trainer init --out %s --train FILE, or restart with another --store",
        root,
        root,
    )
    return None


def make_tracer(settings: TracingSettings) -> Tracer | None:
    """Return the tracer, or None if tracing is off. Raises FailedPreconditionError if OpenTelemetry is not installed."""
    if settings.endpoint is None:
        return None
    try:
        from twofold_server.observability.otel import OtelTracer  # noqa: PLC0415 -- loaded only if tracing is configured.
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            "trace-endpoint needs OpenTelemetry; install twofold-service[otel], or remove the setting"
        ) from error
    return OtelTracer.to(settings.endpoint, settings.share)


def _listen(server: grpc.aio.Server, config: Config) -> int:
    """Open the port and return its number."""
    credentials = credentials_of(config.tls)
    if credentials is None:
        return server.add_insecure_port(config.listener.listen)
    return server.add_secure_port(config.listener.listen, credentials)


def _run_in_background(cleanup: AsyncExitStack, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run a task in the background until the server stops."""
    cleanup.callback(asyncio.create_task(work, name=name).cancel)


async def _announce_shutdown(health: Health, delay: float) -> None:
    """Report NOT_SERVING, and give load balancers time to notice."""
    await health.start_shutdown()
    await asyncio.sleep(delay)


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with serve(config):
        # Objects created so far live until shutdown; freezing them exempts them from garbage collection.
        gc.collect()
        gc.freeze()
        await stopped.wait()

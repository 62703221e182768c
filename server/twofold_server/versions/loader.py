"""Loading a checkpoint beside the live one, in steps: verify, load, warm up, golden answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from twofold_checkpoint.checkpoint import Checkpoint, serving_files
from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.manifest import Precision

from twofold_server.config.settings import EngineSettings
from twofold_server.errors import SwapError
from twofold_server.inference.engine import Engine, EngineState
from twofold_server.resources.cpus import count_cpus, run_in_thread, set_idle_priority, split_cpus
from twofold_server.resources.memory import count_free_bytes
from twofold_server.versions.precision import check_precision, have_same_precisions, time_passes

log = logging.getLogger(__name__)

_COPIES = 1.5
"""Memory needed to load an engine, as a multiple of the size of its files. Measured in swaps: 0.8 to 1.2."""
_SLACK_BYTES = 64 << 20
"""Reserve for its first passes and for concurrent work."""


def load_engine(checkpoint: Checkpoint, settings: EngineSettings, live: Engine | None = None) -> Engine:
    """Load a checkpoint in the configured precision ("auto": the fastest that it has) and check it.

    *live* is the engine that answers meanwhile. Raises CheckpointError, or SwapError with the name of the step; a partly
    loaded engine is closed. Blocks for seconds. Most of the work runs at idle priority, so that requests stay fast. See ADR 19.
    """
    if settings.precision != "auto":
        with _step(checkpoint, "precision"):
            check_precision(checkpoint.manifest, settings.precision)
        return _load(checkpoint, settings, settings.precision, live)
    if live is not None and have_same_precisions(checkpoint.manifest, live.checkpoint.manifest):
        try:  # The fastest precision is the same for both. Timing would need memory for two engines.
            return _load(checkpoint, settings, live.precision, live)
        except (CheckpointError, SwapError):
            if live.precision == "fp32":
                raise
    return _load_fastest(checkpoint, settings, live)


def _load_fastest(checkpoint: Checkpoint, settings: EngineSettings, live: Engine | None) -> Engine:
    engine = _load(checkpoint, settings, "fp32", live)
    if settings.device != "cpu":
        return engine
    for precision in checkpoint.manifest.precisions[1:]:
        try:
            alternative = _load(checkpoint, settings, precision, live)
        except (CheckpointError, SwapError) as error:
            log.warning("cannot serve a precision", extra={"precision": precision, "reason": str(error)})
            continue
        try:
            seconds = _time_engines(engine, alternative)
        except BaseException:
            engine.close()
            alternative.close()
            raise
        log.info(
            "precisions timed",
            extra={"checkpoint": checkpoint.id, engine.precision: seconds[0], alternative.precision: seconds[1]},
        )
        engine, slower = (alternative, engine) if seconds[1] < seconds[0] else (engine, alternative)
        slower.close()
    return engine


def _time_engines(*engines: Engine) -> list[float]:
    def time_idle() -> list[float]:
        set_idle_priority()
        return time_passes(engines)

    return run_in_thread(time_idle)


def _load(checkpoint: Checkpoint, settings: EngineSettings, precision: Precision, live: Engine | None) -> Engine:
    """Load one graph of a checkpoint, warm it up and check its golden answers."""
    run_in_thread(lambda: _verify(checkpoint, precision))
    with _step(checkpoint, "load"):
        _check_memory(checkpoint, precision)
        engine = Engine(
            checkpoint,
            device=settings.device,
            threads=split_cpus(count_cpus(), settings.device, passes=settings.passes, threads=settings.threads).threads,
            gpu_memory_mib=settings.gpu_memory_mib,
            precision=precision,
            share_encoder_with=live,
        )
    try:
        run_in_thread(lambda: _check_engine(engine))
    except BaseException:
        engine.close(EngineState.FAILED)
        raise
    return engine


def _verify(checkpoint: Checkpoint, precision: Precision) -> None:
    set_idle_priority()
    with _step(checkpoint, "verify"):
        checkpoint.verify(serving_files(precision))


def _check_engine(engine: Engine) -> None:
    set_idle_priority()
    with _step(engine.checkpoint, "load"):
        engine.check_signature()
    with _step(engine.checkpoint, "warm up"):
        engine.warm_up()
    with _step(engine.checkpoint, "golden answers"):
        engine.check_golden()


def _check_memory(checkpoint: Checkpoint, precision: Precision) -> None:
    """Reject a checkpoint that does not fit into memory: during loading, the kernel would kill the server. Raises SwapError."""
    size = sum(file.size for file in checkpoint.manifest.files if file.name in serving_files(precision))
    needed, free = int(_COPIES * size) + _SLACK_BYTES, count_free_bytes()
    if free is not None and needed > free:
        raise SwapError(
            f"loading needs about {needed >> 20} MiB, but only {free >> 20} MiB are free; free memory, or raise the "
            "memory limit of the server"
        )


@contextmanager
def _step(checkpoint: Checkpoint, step: str) -> Iterator[None]:
    """Convert errors of a step to a SwapError with its name. A CheckpointError passes unchanged."""
    try:
        yield
    except CheckpointError:
        raise
    except SwapError as error:
        raise SwapError(f"{checkpoint.id}: {step}: {error}") from error
    except Exception as error:  # The errors of onnxruntime and tokenizers have no common base class.
        text = " ".join(str(error).split()).replace(f"{checkpoint.path}/", "")
        raise SwapError(f"{checkpoint.id}: {step}: {text[:300]}") from error

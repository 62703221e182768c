"""Loading a checkpoint beside the one that answers, step by step, each of which may refuse it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from twofold_checkpoint.checkpoint import Checkpoint, serving_files
from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.manifest import Precision

from twofold_server.config.settings import Config
from twofold_server.errors import SwapError
from twofold_server.inference.engine import Engine, EngineState
from twofold_server.resources.cpus import count_cpus, run_in_thread, split_cpus, step_back
from twofold_server.resources.memory import count_free_bytes
from twofold_server.versions.precision import are_alike, check_precision, time_passes

log = logging.getLogger(__name__)

_COPIES = 1.5
"""Memory that an engine takes while it is loaded, by the size of its files. Swaps were measured at 0.8 to 1.2."""
_SLACK_BYTES = 64 << 20
"""What its first passes take, and whatever else begins meanwhile."""


def load_engine(checkpoint: Checkpoint, config: Config, beside: Engine | None = None) -> Engine:
    """Load a checkpoint in the precision that is asked for, or in the fastest that it has, and let it prove itself.

    *beside* is the engine that answers meanwhile. Raises CheckpointError or SwapError, which says the step; nothing of a
    half-made engine stays. Blocks for seconds, while the work is done on threads that leave the CPU to requests. See
    ADR 19.
    """
    if config.precision != "auto":
        with _step(checkpoint, "precision"):
            check_precision(checkpoint.manifest, config.precision)
        return _load(checkpoint, config, config.precision, beside)
    if beside is not None and are_alike(checkpoint.manifest, beside.checkpoint.manifest):
        try:  # What is fastest there is fastest here; to time both would take the memory of both.
            return _load(checkpoint, config, beside.precision, beside)
        except (CheckpointError, SwapError):
            if beside.precision == "fp32":
                raise
    return _load_fastest(checkpoint, config, beside)


def _load_fastest(checkpoint: Checkpoint, config: Config, beside: Engine | None) -> Engine:
    engine = _load(checkpoint, config, "fp32", beside)
    if config.device != "cpu":
        return engine
    for precision in checkpoint.manifest.precisions[1:]:
        try:
            alternative = _load(checkpoint, config, precision, beside)
        except (CheckpointError, SwapError) as error:
            log.warning("a precision cannot be served", extra={"precision": precision, "reason": str(error)})
            continue
        try:
            seconds = _time(engine, alternative)
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


def _time(*engines: Engine) -> list[float]:
    def aside() -> list[float]:
        step_back()
        return time_passes(engines)

    return run_in_thread(aside)


def _load(checkpoint: Checkpoint, config: Config, precision: Precision, beside: Engine | None) -> Engine:
    """Load one of a checkpoint's graphs, warm it up and let it answer its golden texts."""
    run_in_thread(lambda: _verify(checkpoint, precision))
    with _step(checkpoint, "load"):
        _check_memory(checkpoint, precision)
        engine = Engine(
            checkpoint,
            device=config.device,
            threads=split_cpus(count_cpus(), config.device, passes=config.passes, threads=config.threads).threads,
            gpu_memory_mib=config.gpu_memory_mib,
            precision=precision,
            beside=beside,
        )
    try:
        run_in_thread(lambda: _try_out(engine))
    except BaseException:
        engine.close(EngineState.FAILED)
        raise
    return engine


def _verify(checkpoint: Checkpoint, precision: Precision) -> None:
    step_back()
    with _step(checkpoint, "verify"):
        checkpoint.verify(serving_files(precision))


def _try_out(engine: Engine) -> None:
    step_back()
    with _step(engine.checkpoint, "load"):
        engine.check_signature()
    with _step(engine.checkpoint, "warm up"):
        engine.warm_up()
    with _step(engine.checkpoint, "golden answers"):
        engine.check_golden()


def _check_memory(checkpoint: Checkpoint, precision: Precision) -> None:
    """Refuse what does not fit beside the engine that answers: half-way through, the kernel would end the whole server."""
    size = sum(file.size for file in checkpoint.manifest.files if file.name in serving_files(precision))
    needed, free = int(_COPIES * size) + _SLACK_BYTES, count_free_bytes()
    if free is not None and needed > free:
        raise SwapError(
            f"it takes about {needed >> 20} MiB while it is loaded, and {free >> 20} MiB are free; free some memory, or "
            "start a server with more"
        )


@contextmanager
def _step(checkpoint: Checkpoint, step: str) -> Iterator[None]:
    """Let whatever goes wrong in a step be a SwapError that names it; errors of checkpoints say enough themselves."""
    try:
        yield
    except CheckpointError:
        raise
    except SwapError as error:
        raise SwapError(f"{checkpoint.id}: {step}: {error}") from error
    except Exception as error:  # The errors of onnxruntime and tokenizers have no base of their own.
        text = " ".join(str(error).split()).replace(f"{checkpoint.path}/", "")
        raise SwapError(f"{checkpoint.id}: {step}: {text[:300]}") from error

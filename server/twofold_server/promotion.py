"""Making a checkpoint the one that answers, without a lost request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twofold_checkpoint.checkpoint import Checkpoint, served
from twofold_checkpoint.errors import CheckpointError, CheckpointNotFoundError
from twofold_checkpoint.manifest import Precision
from twofold_checkpoint.store import Store

from twofold_server.config import Config
from twofold_server.engine import Engine, EngineState
from twofold_server.errors import SwapError, WrongStateError
from twofold_server.memory import count_free_bytes
from twofold_server.metrics import Metrics
from twofold_server.precision import are_alike, check_precision, time_passes
from twofold_server.slot import Slot
from twofold_server.threads import count_cpus, run_aside, step_back

_COPIES = 1.5
"""Memory that an engine takes while it is loaded, by the size of its files. Swaps were measured at 0.8 to 1.2."""
_SLACK_BYTES = 64 << 20
"""What its first passes take, and whatever else begins meanwhile."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Promotion:
    """Say what answers now, what answered before (its id, or empty), and how long the change took in seconds."""

    checkpoint: Checkpoint
    replaced_id: str
    seconds: float


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
            other = _load(checkpoint, config, precision, beside)
        except (CheckpointError, SwapError) as error:
            log.warning("a precision cannot be served", extra={"precision": precision, "reason": str(error)})
            continue
        try:
            seconds = _time(engine, other)
        except BaseException:
            engine.close()
            other.close()
            raise
        log.info(
            "precisions timed",
            extra={"checkpoint": checkpoint.id, engine.precision: seconds[0], other.precision: seconds[1]},
        )
        engine, slower = (other, engine) if seconds[1] < seconds[0] else (engine, other)
        slower.close()
    return engine


def _time(*engines: Engine) -> list[float]:
    def aside() -> list[float]:
        step_back()
        return time_passes(engines)

    return run_aside(aside)


def _load(checkpoint: Checkpoint, config: Config, precision: Precision, beside: Engine | None) -> Engine:
    """Load one of a checkpoint's graphs, warm it up and let it answer its golden texts."""
    run_aside(lambda: _verify(checkpoint, precision))
    with _step(checkpoint, "load"):
        _check_memory(checkpoint, precision)
        engine = Engine(
            checkpoint,
            device=config.device,
            threads=config.threads or count_cpus(),
            gpu_memory_mib=config.gpu_memory_mib,
            precision=precision,
            beside=beside,
        )
    try:
        run_aside(lambda: _try_out(engine))
    except BaseException:
        engine.close(EngineState.FAILED)
        raise
    return engine


def _verify(checkpoint: Checkpoint, precision: Precision) -> None:
    step_back()
    with _step(checkpoint, "verify"):
        checkpoint.verify(served(precision))


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
    size = sum(file.size for file in checkpoint.manifest.files if file.name in served(precision))
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


class Promoter:
    """Move the aliases of a store and the engine of a slot together, one promotion at a time.

    A promotion that began goes on to its end, even if its caller leaves: half of one would part the alias from the
    engine. *on_live* is awaited whenever an engine has become live.
    """

    def __init__(
        self,
        store: Store,
        slot: Slot,
        config: Config,
        metrics: Metrics,
        on_live: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._slot = slot
        self._config = config
        self._metrics = metrics
        self._on_live = on_live
        self._turn = asyncio.Lock()
        self._begun: set[asyncio.Task[Promotion]] = set()

    async def promote(self, name: str, *, approve: bool = False) -> Promotion:
        """Make the checkpoint of an id or alias live; *approve* says that a person chose it.

        When it returns, every request that arrives later is answered by it. If any step fails, the old one serves on
        and the error says which step: SwapError or CheckpointError.
        """
        return await self._to_its_end(name, approve=approve)

    async def roll_back(self) -> Promotion:
        """Make the previous checkpoint live again. Raises WrongStateError if there is none, or what promote raises."""
        try:
            return await self._to_its_end("previous", approve=True)
        except CheckpointNotFoundError as error:
            raise WrongStateError(f"cannot roll back: {error}") from error

    async def stop(self) -> None:
        """Wait until what began has ended."""
        await asyncio.gather(*self._begun, return_exceptions=True)

    async def _to_its_end(self, name: str, *, approve: bool) -> Promotion:
        task = asyncio.create_task(self._in_turn(name, approve=approve), name=f"promote {name}")
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)

    async def _in_turn(self, name: str, *, approve: bool) -> Promotion:
        async with self._turn:
            try:
                checkpoint = await asyncio.to_thread(self._store.get, name)
                live = self._slot.live
                if live is not None and live.id == checkpoint.id:
                    await self._move_aliases(
                        checkpoint, approve=approve
                    )  # They differ if the server began with an older checkpoint.
                    return Promotion(checkpoint, checkpoint.id, 0.0)
                return await self._swap(checkpoint, "" if live is None else live.id, approve=approve)
            except CheckpointNotFoundError:  # A wrong name is the caller's fault, and no promotion.
                raise
            except Exception as error:
                self._metrics.swaps.labels("failed").inc()
                log.warning("promotion failed", extra={"checkpoint": name, "reason": str(error)}, exc_info=error)
                raise

    async def _swap(self, checkpoint: Checkpoint, replaced: str, *, approve: bool) -> Promotion:
        begun = time.monotonic()
        engine = await asyncio.to_thread(load_engine, checkpoint, self._config, self._slot.live)
        try:
            # The aliases first: moving them can fail, and nothing after it can.
            await self._move_aliases(checkpoint, approve=approve)
        except BaseException:
            await asyncio.to_thread(engine.close, EngineState.FAILED)
            raise
        self._slot.swap(engine)
        await self._on_live()
        seconds = time.monotonic() - begun
        self._metrics.swaps.labels("succeeded").inc()
        self._metrics.swap_seconds.observe(seconds)
        log.info("promoted", extra={"checkpoint": checkpoint.id, "replaced": replaced, "seconds": round(seconds, 3)})
        return Promotion(checkpoint, replaced, seconds)

    async def _move_aliases(self, checkpoint: Checkpoint, *, approve: bool) -> None:
        try:
            await asyncio.to_thread(self._store.promote, checkpoint.id, approve=approve)
        except OSError as error:
            raise SwapError(f"{checkpoint.id}: aliases: they cannot be written: {error.strerror}") from error

"""Opening a session on a device: with which execution provider, and with which of its options."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from twofold_checkpoint.checkpoint import SLOW_FUSIONS

from twofold_server.errors import SwapError
from twofold_server.resources.cpus import run_in_thread, set_idle_priority
from twofold_server.resources.memory import allocate_with_mmap

Provider = tuple[str, dict[str, str]]
"""The name of an execution provider, and its options."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_EXTRAS = {"cpu": "cpu", "cuda": "gpu"}


def choose_providers(device: str, gpu_memory_mib: int, available: Collection[str]) -> list[Provider]:
    """Return the providers of a device, the one that is wanted first. *gpu_memory_mib* bounds one session; 0 does not.

    Raises SwapError if the installed onnxruntime, which has the *available* ones, does not have it.
    """
    name = _PROVIDERS[device]
    if name not in available:
        raise SwapError(
            f"device {device!r} needs {name}, which this onnxruntime does not have; install the {_EXTRAS[device]} extra, "
            "or choose another device"
        )
    cpu: Provider = (_PROVIDERS["cpu"], {})
    if device == "cpu":
        return [cpu]
    options = {
        # The arena keeps what it once took as long as its session lives, and by default it takes twice as much each time.
        "arena_extend_strategy": "kSameAsRequested",
        # Ten bits of mantissa: a score would differ by more than a golden answer may, and by the shape of its batch.
        "use_tf32": "0",
    }
    if gpu_memory_mib:
        options["gpu_mem_limit"] = str(gpu_memory_mib << 20)
    return [(name, options), cpu]


def open_session(graph: Path, *, device: str, threads: int, gpu_memory_mib: int = 0) -> ort.InferenceSession:
    """Load a graph onto a device. Raises SwapError if the device cannot be used, or what onnxruntime raises."""
    providers = choose_providers(device, gpu_memory_mib, ort.get_available_providers())
    if device == "cuda":
        ort.preload_dlls()  # CUDA and cuDNN may have come as wheels, which the loader does not find by itself.
    options = ort.SessionOptions()
    # A pool for each session, whose threads sleep between operators. The one global pool cannot be told not to spin
    # from Python, and threads that spin take the CPU from whatever else runs here, a trainer above all. See ADR 6.
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    # The arena keeps the largest batch's memory for ever; without it a swap costs one copy and no more.
    options.enable_cpu_mem_arena = False
    slow = SLOW_FUSIONS if device == "cpu" else ()
    with allocate_with_mmap():
        session = run_in_thread(
            lambda: ort.InferenceSession(
                str(graph), options, providers=providers, disabled_optimizers=_set_idle_when_listed(slow)
            )
        )
    wanted = providers[0][0]
    if wanted not in session.get_providers():  # onnxruntime falls back to the CPU and says so only in its log.
        raise SwapError(
            f"device {device!r} cannot be used on this machine: {wanted} did not start; check that its driver, CUDA and "
            f"cuDNN are those that onnxruntime {ort.__version__} needs, or choose another device"
        )
    return session


def _set_idle_when_listed(optimizers: Iterable[str]) -> Iterator[str]:
    """Name optimizers. They are asked for when the session has its threads and before it packs its weights.

    That is the moment to step back: the threads, which will answer requests, would inherit it, and the packing is what
    requests would feel.
    """
    set_idle_priority()
    yield from optimizers


def run_bound(
    session: ort.InferenceSession, feeds: Mapping[str, NDArray[np.int64]], outputs: Sequence[str], device: str
) -> list[NDArray[np.float32]]:
    """Run a pass whose inputs and outputs are bound to the device's memory: each is copied once, all in one go."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
    for name in outputs:
        binding.bind_output(name, device, 0)
    session.run_with_iobinding(binding)
    arrays: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
    return arrays

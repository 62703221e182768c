"""ONNX Runtime sessions: execution providers, their options, and I/O binding."""

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
"""Name and options of an execution provider."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_EXTRAS = {"cpu": "cpu", "cuda": "gpu"}


def choose_providers(device: str, gpu_memory_mib: int, available: Collection[str]) -> list[Provider]:
    """Return the execution providers of a device, in order of preference.

    *gpu_memory_mib* limits the memory of one session; 0: no limit. Raises SwapError if the provider of the device is not among
    the *available* ones.
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
        # The arena never shrinks while the session lives, and by default each extension doubles it.
        "arena_extend_strategy": "kSameAsRequested",
        # TF32 has ten bits of mantissa: scores would exceed the golden tolerance and depend on the batch shape.
        "use_tf32": "0",
    }
    if gpu_memory_mib:
        options["gpu_mem_limit"] = str(gpu_memory_mib << 20)
    return [(name, options), cpu]


def open_session(graph: Path, *, device: str, threads: int, gpu_memory_mib: int = 0) -> ort.InferenceSession:
    """Load a graph onto a device. Raises SwapError if the device cannot be used, and any error of onnxruntime."""
    providers = choose_providers(device, gpu_memory_mib, ort.get_available_providers())
    if device == "cuda":
        ort.preload_dlls()  # CUDA and cuDNN may be installed as wheels, which the dynamic loader does not find.
    options = ort.SessionOptions()
    # One thread pool per session, without spinning: spinning threads would take CPU from other processes, above all from a
    # trainer, and spinning of the global pool cannot be turned off from Python. See ADR 6.
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    # The arena would retain the memory of the largest batch. Without it a swap needs memory for one further copy only.
    options.enable_cpu_mem_arena = False
    slow = SLOW_FUSIONS if device == "cpu" else ()
    with allocate_with_mmap():
        session = run_in_thread(
            lambda: ort.InferenceSession(
                str(graph), options, providers=providers, disabled_optimizers=_set_idle_when_listed(slow)
            )
        )
    provider = providers[0][0]
    if provider not in session.get_providers():  # onnxruntime falls back to the CPU and only logs it.
        raise SwapError(
            f"device {device!r} cannot be used on this machine: {provider} did not start; check that its driver, CUDA and "
            f"cuDNN match onnxruntime {ort.__version__}, or choose another device"
        )
    return session


def _set_idle_when_listed(optimizers: Iterable[str]) -> Iterator[str]:
    """Yield *optimizers*, and set idle priority when the session starts to read them.

    The session reads them after it has started its threads and before it packs its weights. An earlier change would be
    inherited by the threads, which answer requests; a later one would let the packing slow requests down.
    """
    set_idle_priority()
    yield from optimizers


def run_bound(
    session: ort.InferenceSession, feeds: Mapping[str, NDArray[np.int64]], outputs: Sequence[str], device: str
) -> list[NDArray[np.float32]]:
    """Run a pass with inputs and outputs bound to device memory, so that each array is copied once."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
    for name in outputs:
        binding.bind_output(name, device, 0)
    session.run_with_iobinding(binding)
    arrays: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
    return arrays

"""Sessions: the provider of a device and its options. No GPU is needed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import onnxruntime as ort
import pytest
from support import tiny_checkpoints
from twofold_checkpoint.checkpoint import GRAPH
from twofold_server.errors import SwapError
from twofold_server.inference import session as session_module
from twofold_server.inference.engine import HEAD_OUTPUTS
from twofold_server.inference.session import choose_providers, open_session, run_bound

CPU = ("CPUExecutionProvider", {})
CUDA = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
BOTH = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Publish a tiny checkpoint and return its graph."""
    return tiny_checkpoints.make_store(tmp_path, "a").get("a").path / GRAPH


@pytest.mark.parametrize(
    ("device", "mib", "available", "expected"),
    [
        ("cpu", 0, ("CPUExecutionProvider",), [CPU]),
        ("cpu", 512, BOTH, [CPU]),
        ("cuda", 0, BOTH, [("CUDAExecutionProvider", CUDA), CPU]),
        ("cuda", 512, BOTH, [("CUDAExecutionProvider", {**CUDA, "gpu_mem_limit": "536870912"}), CPU]),
    ],
)
def test_a_device_has_its_provider(device: str, mib: int, available: tuple[str, ...], expected: object) -> None:
    """A GPU session has a bounded arena and full precision; a CPU session has no options."""
    assert choose_providers(device, mib, available) == expected


@pytest.mark.parametrize(
    ("device", "available", "extra"), [("cuda", ("CPUExecutionProvider",), "gpu"), ("cpu", (), "cpu")]
)
def test_a_wheel_without_the_provider_names_the_extra(device: str, available: tuple[str, ...], extra: str) -> None:
    """If the installed onnxruntime lacks the provider, the error says what to install."""
    with pytest.raises(SwapError, match=f"device '{device}' needs .*; install the {extra} extra, or choose another"):
        choose_providers(device, 0, available)


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")
def test_a_provider_that_does_not_start_is_an_error(graph: Path) -> None:
    """If CUDA does not start, onnxruntime would fall back to the CPU; loading fails instead."""
    with (
        mock.patch.object(ort, "get_available_providers", return_value=list(BOTH)),
        mock.patch.object(ort, "preload_dlls") as preload,
        pytest.raises(SwapError, match="CUDAExecutionProvider did not start; check that its driver"),
    ):
        open_session(graph, device="cuda", threads=1)
    preload.assert_called_once_with()


def test_a_bound_pass_computes_the_same(graph: Path) -> None:
    """A pass with inputs and outputs bound to a device, here the CPU, equals a plain pass."""
    session = open_session(graph, device="cpu", threads=1)
    ids = np.array([[2, 9, 12, 3], [2, 7, 3, 0]], np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int64)}

    for outputs in (HEAD_OUTPUTS, HEAD_OUTPUTS[::-1], HEAD_OUTPUTS[:1]):
        bound = run_bound(session, feeds, outputs, "cpu")
        for left, right in zip(bound, session.run(list(outputs), feeds), strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_session_s_threads_sleep_and_keep_no_memory(graph: Path) -> None:
    """A session has its own pool of threads that do not spin, and no arena that keeps memory."""
    options = open_session(graph, device="cpu", threads=3).get_session_options()

    assert options.intra_op_num_threads == 3
    assert options.use_per_session_threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert not options.enable_cpu_mem_arena


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_a_session_is_loaded_at_idle_priority(graph: Path) -> None:
    """A session is loaded at idle priority, and its own threads have normal priority."""

    def niceness(thread: int) -> int:
        return os.getpriority(os.PRIO_PROCESS, thread)

    own, packing, me = [], [], threading.get_native_id()

    def names() -> set[int]:
        return {int(path.name) for path in Path("/proc/self/task").iterdir()}

    before, set_idle_priority, apart = names(), session_module.set_idle_priority, []

    @contextmanager
    def allocate_with_mmap() -> Iterator[None]:
        apart.append("begun")
        yield
        apart.append("ended")

    def note() -> None:
        set_idle_priority()
        packing.append((niceness(threading.get_native_id()), list(apart)))
        own.extend(names() - before - {threading.get_native_id()})

    with mock.patch.multiple(session_module, set_idle_priority=note, allocate_with_mmap=allocate_with_mmap):
        session = open_session(graph, device="cpu", threads=3)

    assert packing == [(19, ["begun"])]  # What is packed is allocated apart.
    assert [niceness(thread) for thread in own] == [niceness(me)] * 2  # The third is the one that runs a pass.
    assert set(own) <= names()  # They are there to stay.
    assert session.get_providers() == ["CPUExecutionProvider"]

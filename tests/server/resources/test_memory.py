"""Memory: the available amount, and checkpoints that would not fit."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from twofold_server.config.settings import EngineSettings
from twofold_server.errors import SwapError
from twofold_server.resources.memory import count_free_bytes, free_bytes
from twofold_server.versions.loader import load_engine

MEMINFO = "MemTotal:       24000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n"
AVAILABLE = 8000 * 1024
COUNT_ARENAS = """
import ctypes, sys, threading
from twofold_server.resources.memory import configure_malloc

libc = ctypes.CDLL("libc.so.6")
libc.fopen.restype = ctypes.c_void_p
if sys.argv[1] == "shared":
    configure_malloc()
barrier = threading.Barrier(8)
def allocate():
    barrier.wait()
    libc.malloc(100_000)
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""
FREE_MOST = """
import ctypes, sys
from contextlib import nullcontext
import psutil
from twofold_server.resources.memory import allocate_with_mmap, configure_malloc

configure_malloc()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
with allocate_with_mmap() if sys.argv[1] == "apart" else nullcontext():
    blocks = [libc.malloc(800_000) for _ in range(100)]
later = libc.malloc(8000)
[ctypes.memset(block, 1, 800_000) for block in blocks]
full = psutil.Process().memory_info().rss
[libc.free(block) for block in blocks[:-1]]
print(full - psutil.Process().memory_info().rss)
"""


@pytest.mark.parametrize(
    ("meminfo", "limit", "used", "statistics", "expected"),
    [
        (MEMINFO, None, None, None, AVAILABLE),
        (MEMINFO, "max\n", "5\n", "", AVAILABLE),
        (MEMINFO, "5000000\n", "4000000\n", "anon 7\ninactive_file 300000\n", 1_300_000),
        (MEMINFO, "5000000\n", "4000000\n", None, 1_000_000),
        (MEMINFO, "90000000000\n", "4000000\n", "inactive_file 0\n", AVAILABLE),
        (MEMINFO, "4000000\n", "5000000\n", "", 0),
        ("", None, None, None, None),
        ("", "5000000\n", "4000000\n", "", 1_000_000),
    ],
)
def test_the_smaller_of_machine_and_cgroup_counts(meminfo, limit, used, statistics, expected):
    """Available is the smaller of machine and cgroup, at least 0, and None if unknown."""
    assert free_bytes(meminfo, limit, used, statistics) == expected


def test_this_machine_has_memory_left():
    """On Linux the available memory is known."""
    assert count_free_bytes() > 0


def test_a_checkpoint_that_does_not_fit_is_rejected_before_loading(store, monkeypatch):
    """If a second copy does not fit, loading fails with the needed and the free amount before a session is opened."""
    monkeypatch.setattr("twofold_server.versions.loader.count_free_bytes", lambda: 10 << 20)
    monkeypatch.setattr("twofold_server.versions.loader.Engine", None)

    with pytest.raises(SwapError, match=r"b: load: loading needs about 64 MiB.* but only 10 MiB are free"):
        load_engine(store.get("b"), EngineSettings())


def test_unknown_memory_does_not_prevent_loading(store, monkeypatch):
    """If the available memory is unknown, a checkpoint is loaded."""
    monkeypatch.setattr("twofold_server.versions.loader.count_free_bytes", lambda: None)

    assert load_engine(store.get("b"), EngineSettings()).id == "b"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_mmapped_memory_returns_to_the_system():
    """80 MB that are freed below a live allocation return to the system if they were allocated with mmap, and not otherwise."""

    def went_back(how):
        command = [sys.executable, "-c", FREE_MOST, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert went_back("apart") > 70e6
    assert went_back("together") < 10e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_arenas():
    """Eight allocating threads use two arenas, and more without the setting."""

    def count(how):
        command = [sys.executable, "-c", COUNT_ARENAS, how]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("<heap nr=")

    assert count("shared") == 2
    assert count("apart") > 2

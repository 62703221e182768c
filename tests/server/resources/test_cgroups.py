"""Control groups: the one of the process, and the limits of its ancestors."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from twofold_server.resources import cgroups
from twofold_server.resources.cpus import count_cpus
from twofold_server.resources.memory import count_free_bytes


@pytest.mark.parametrize(
    ("own", "group"),
    [
        ("0::/\n", ""),
        ("0::/system.slice/twofold.service\n", "system.slice/twofold.service"),
        ("4:memory:/old\n1:cpu:/older\n0::/user.slice\n", "user.slice"),
        ("4:memory:/old\n", ""),
        ("0::/../../elsewhere\n", ""),
        ("", ""),
    ],
)
def test_the_group_is_that_of_version_2(own: str, group: str) -> None:
    """The group is that of cgroup version 2, below the visible root."""
    assert cgroups.find_group(own) == PurePosixPath(group)


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hierarchy with this process in the group "system.slice/unit", and four CPUs of affinity."""
    (tmp_path / "own").write_text("0::/system.slice/unit\n")
    (tmp_path / "cgroup/system.slice/unit").mkdir(parents=True)
    monkeypatch.setattr(cgroups, "_MEMBERSHIP", tmp_path / "own")
    monkeypatch.setattr(cgroups, "_HIERARCHY", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    return tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 4),
        ({"": "200000 100000"}, 2),
        ({"system.slice/unit": "200000 100000"}, 2),
        ({"system.slice/unit": "max 100000", "system.slice": "300000 100000"}, 3),
        ({"system.slice/unit": "200000 100000", "system.slice": "100000 100000"}, 1),
    ],
)
def test_the_smallest_quota_counts(quotas: dict[str, str], expected: int, hierarchy: Path) -> None:
    """The smallest quota of all ancestors and the affinity is the limit."""
    for group, quota in quotas.items():
        (hierarchy / group / "cpu.max").write_text(f"{quota}\n")

    assert count_cpus() == expected


def test_the_least_memory_that_a_group_has_left_counts(hierarchy: Path) -> None:
    """The least free memory of all ancestors is the limit; one without a limit does not count."""
    (hierarchy / "system.slice/unit/memory.max").write_text("max\n")
    (hierarchy / "system.slice/unit/memory.current").write_text("5\n")
    assert (count_free_bytes() or 0) > 3000

    (hierarchy / "system.slice/memory.max").write_text("7000\n")
    (hierarchy / "system.slice/memory.current").write_text("6000\n")
    (hierarchy / "system.slice/memory.stat").write_text("anon 4000\ninactive_file 2000\n")
    assert count_free_bytes() == 3000

"""Counting CPUs: what a process may use."""

from __future__ import annotations

import pytest
from twofold_server.threads import allowed_cpus, count_cpus

QUOTAS = [
    (8, None, 8),
    (8, "max 100000\n", 8),
    (8, "max", 8),
    (8, "", 8),
    (8, "200000 100000\n", 2),
    (8, "150000 100000\n", 2),
    (8, "50000 100000\n", 1),
    (8, "1000 100000\n", 1),
    (2, "800000 100000\n", 2),
    (1, "max 100000", 1),
]


@pytest.mark.parametrize(("affinity", "cpu_max", "expected"), QUOTAS)
def test_a_quota_cuts_the_affinity(affinity, cpu_max, expected):
    """The CPUs are those of the affinity, cut by the quota rounded up, and never none."""
    assert allowed_cpus(affinity, cpu_max) == expected


def test_this_machine_has_a_cpu():
    """Whatever this machine is, there is at least one CPU to use."""
    assert count_cpus() >= 1

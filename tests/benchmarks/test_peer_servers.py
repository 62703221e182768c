"""The comparison with other model servers: its search, its figures, its folders."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.load.protocols import PROTOCOLS
from benchmarks.peer_servers.catalog import ENTRANTS, HOME
from benchmarks.peer_servers.figures import figures, summarise
from benchmarks.peer_servers.settings import Settings, read_settings
from benchmarks.peer_servers.settings_search import search

pytestmark = pytest.mark.slow


def turn(rate: float, p99: float, cpu: float = 1.0) -> dict[str, float]:
    """Invent what one side did."""
    return {"per_second": rate, "p99_ms": p99, "cpu_ms": cpu, "p99_equal_ms": p99 / 2}


def rounds(*pairs: tuple[dict[str, float], dict[str, float]]) -> list[dict[str, Any]]:
    """Invent rounds over one text set."""
    return [{"short": {"twofold": ours, "peer": theirs}} for ours, theirs in pairs]


def test_ratios_are_medians_of_neighbours() -> None:
    """A machine that slows both sides down for a round changes their medians and not their ratio."""
    measured = rounds((turn(200, 10), turn(100, 20)), (turn(20, 100), turn(10, 200)), (turn(240, 8), turn(80, 32)))
    found = summarise(measured)["short"]
    assert found["twofold"] == turn(200, 10)
    assert found["peer"] == turn(80, 32)
    assert found["ratio"] == {"per_second": 2.0, "cpu_ms": 1.0, "p99_ms": 0.5, "p99_equal_ms": 0.5}


def test_the_best_peer_is_the_best_at_each_figure() -> None:
    """One peer is the best in throughput and another in latency: Twofold is compared with both."""
    quick = summarise(rounds((turn(200, 10), turn(160, 40, 1.25))))
    prompt = summarise(rounds((turn(210, 9), turn(70, 12, 2.0))))
    found = figures({"quick": quick, "prompt": prompt})
    assert found["throughput_over_best_peer"] == 1.25
    assert found["p99_over_best_peer"] == 0.75
    assert found["cpu_over_best_peer"] == 0.8
    assert found["p99_at_equal_load_over_best_peer"] == 0.75
    assert found["quick_short_per_second"] == 160
    assert found["prompt_short_p99_ms"] == 12


def test_a_search_goes_axis_by_axis() -> None:
    """Each axis is tried with the best of those before it, nothing twice, and what a choice leaves out is at its default."""
    rates = {"batch": {8: 1.0, 16: 2.0, 32: 1.5}, "workers": {1: 1.0, 2: 3.0}}
    asked = []

    def measure(choice: Mapping[str, Any]) -> float:
        asked.append(dict(choice))
        spinning = 0.5 if choice.get("spinning") else 1.0
        return rates["batch"][choice["batch"]] * rates["workers"][choice["workers"]] * spinning

    workers = ({"workers": 1, "spinning": True}, {"workers": 1}, {"workers": 2})
    best, tried = search((workers, ({"batch": 8}, {"batch": 16}, {"batch": 32})), measure)
    assert best == {"workers": 2, "batch": 16}
    assert [one for one, _ in tried] == asked
    assert asked == [
        {"workers": 1, "spinning": True, "batch": 8},
        {"workers": 1, "batch": 8},
        {"workers": 2, "batch": 8},
        {"workers": 2, "batch": 16},
        {"workers": 2, "batch": 32},
    ]


@pytest.mark.parametrize("name", ENTRANTS)
def test_a_peer_is_explained_and_pinned(name: str) -> None:
    """Its folder says what its settings are and has exact versions, and every choice is one that settings can hold."""
    assert ast.get_docstring(ast.parse((HOME / name / "serve.py").read_text(encoding="utf-8")))
    pins = (HOME / name / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line for line in pins if line and not line.startswith("#"))
    assert ENTRANTS[name].protocol in PROTOCOLS
    for axis in ENTRANTS[name].axes:
        for choice in axis:
            settings = Settings(port=1, checkpoint="/store/1", **choice)
            assert read_settings(settings.write()) == settings

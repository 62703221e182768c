"""The comparison with other model servers: settings search, figures and folders."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.load.protocols import PROTOCOLS
from benchmarks.peer_servers.catalog import HOME, PEER_SERVERS
from benchmarks.peer_servers.figures import compute_figures, summarise
from benchmarks.peer_servers.settings import Settings, read_settings
from benchmarks.peer_servers.settings_search import search

pytestmark = pytest.mark.slow


def measured_server(rate: float, p99: float, cpu: float = 1.0) -> dict[str, float]:
    """Return the measurements of a server."""
    return {"per_second": rate, "p99_ms": p99, "cpu_ms": cpu, "p99_equal_ms": p99 / 2}


def rounds(*pairs: tuple[dict[str, float], dict[str, float]]) -> list[dict[str, Any]]:
    """Return rounds over one text set."""
    return [{"short": {"twofold": twofold, "peer": peer}} for twofold, peer in pairs]


def test_ratios_are_medians_of_neighbours() -> None:
    """A machine that slows both sides down in a round changes their medians but not their ratio."""
    measured = rounds(
        (measured_server(200, 10), measured_server(100, 20)),
        (measured_server(20, 100), measured_server(10, 200)),
        (measured_server(240, 8), measured_server(80, 32)),
    )
    summary = summarise(measured)["short"]
    assert summary["twofold"] == measured_server(200, 10)
    assert summary["peer"] == measured_server(80, 32)
    assert summary["ratio"] == {"per_second": 2.0, "cpu_ms": 1.0, "p99_ms": 0.5, "p99_equal_ms": 0.5}


def test_the_best_peer_is_the_best_at_each_figure() -> None:
    """Twofold is compared with the peer that is best in throughput and with the one that is best in latency."""
    quick = summarise(rounds((measured_server(200, 10), measured_server(160, 40, 1.25))))
    prompt = summarise(rounds((measured_server(210, 9), measured_server(70, 12, 2.0))))
    figures = compute_figures({"quick": quick, "prompt": prompt})
    assert figures["throughput_over_best_peer"] == 1.25
    assert figures["p99_over_best_peer"] == 0.75
    assert figures["cpu_over_best_peer"] == 0.8
    assert figures["p99_at_equal_load_over_best_peer"] == 0.75
    assert figures["quick_short_per_second"] == 160
    assert figures["prompt_short_p99_ms"] == 12


def test_settings_are_searched_axis_by_axis() -> None:
    """Each axis is searched with the best values of the axes before it, without repetitions, and unset options have their defaults."""
    rates = {"batch": {8: 1.0, 16: 2.0, 32: 1.5}, "workers": {1: 1.0, 2: 3.0}}
    measured = []

    def measure(choice: Mapping[str, Any]) -> float:
        measured.append(dict(choice))
        spinning = 0.5 if choice.get("spinning") else 1.0
        return rates["batch"][choice["batch"]] * rates["workers"][choice["workers"]] * spinning

    workers = ({"workers": 1, "spinning": True}, {"workers": 1}, {"workers": 2})
    best, trials = search((workers, ({"batch": 8}, {"batch": 16}, {"batch": 32})), measure)
    assert best == {"workers": 2, "batch": 16}
    assert [settings for settings, _ in trials] == measured
    assert measured == [
        {"workers": 1, "spinning": True, "batch": 8},
        {"workers": 1, "batch": 8},
        {"workers": 2, "batch": 8},
        {"workers": 2, "batch": 16},
        {"workers": 2, "batch": 32},
    ]


@pytest.mark.parametrize("name", PEER_SERVERS)
def test_a_peer_is_explained_and_pinned(name: str) -> None:
    """A peer's folder explains its settings and pins exact versions, and every choice is valid."""
    assert ast.get_docstring(ast.parse((HOME / name / "serve.py").read_text(encoding="utf-8")))
    pins = (HOME / name / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line for line in pins if line and not line.startswith("#"))
    assert PEER_SERVERS[name].protocol in PROTOCOLS
    for axis in PEER_SERVERS[name].axes:
        for choice in axis:
            settings = Settings(port=1, checkpoint="/store/1", **choice)
            assert read_settings(settings.write()) == settings

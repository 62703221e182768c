"""A real Prometheus scrapes a real server, and every panel, annotation and alert has data."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.conftest import EXAMPLES, send_traffic, two_gpus, write_trainer
from support import tiny_checkpoints
from support.monitoring_queries import PROMETHEUS, annotations, fill, panels, rules, variables
from support.promql import selectors
from twofold import Client, Head, JobState
from twofold_server.testing import free_port, serving

pytestmark = pytest.mark.slow

PATIENCE = 120.0
"""Seconds in which a value must have come to Prometheus. It takes three or so."""


LONG = "10m"
"""What the rates look back on: it happened some tests ago."""


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **query: str) -> Any:
        """Call the API, which must succeed."""
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            actual = json.load(answer)
        assert actual["status"] == "success"
        return actual["data"]

    def values(self, query: str) -> list[float]:
        """Evaluate a query now, and return its numeric values."""
        actual = [float(item["value"][1]) for item in self.get("/api/v1/query", query=query)["result"]]
        return list(filter(math.isfinite, actual))


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus with our configuration, rules and alerts, and a scrape interval of one second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not on PATH (Debian: apt-get install prometheus)")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    listen = f"127.0.0.1:{free_port()}"
    flags = {
        "config.file": directory / "prometheus.yml",
        "storage.tsdb.path": directory / "data",
        "web.listen-address": listen,
    }
    command = [program, *(f"--{name}={value}" for name, value in flags.items())]
    with (
        (directory / "prometheus.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield Prometheus(f"http://{listen}")
        finally:
            process.terminate()


def until(actual: Any) -> None:
    """Wait until a value is found, and raise the last error otherwise."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            assert actual()
        except (AssertionError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


@contextmanager
def calling(client: Client) -> Iterator[None]:
    """Call continuously, because a rate needs two scrapes."""
    ended = threading.Event()

    def call() -> None:
        while not ended.wait(0.3):
            client.predict("rain in oslo today")
            client.embed("rain in oslo today")

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen every kind of call, promotions (one fails), a finished job and a running job."""
    root = tmp_path_factory.mktemp("live")
    store = tiny_checkpoints.make_store(root / "store", "a", "b")
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(), name="c")
    broken = tiny_checkpoints.publish_broken(store, "one bit flipped").id
    trainer = write_trainer(root / "trainer")
    flags = ("--trainer-python", str(trainer), "--rollback-share", "1")
    with (
        two_gpus(),
        serving(store.root, *flags, log=root / "log") as server,
        prometheus(root, urllib.parse.urlsplit(server.metrics_url).netloc) as seen,
        Client(server.target) as client,
        ExitStack() as stack,
    ):
        until(lambda: seen.values("twofold_ready == 1"))  # What rises before the first look has not risen.
        send_traffic(server.target, client, broken)
        trainer.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n", encoding="utf-8")
        job = client.adapt(EXAMPLES, head=Head.NER)
        until(lambda: client.job(job.id).state is JobState.RUNNING)
        for name in ("a", "c"):  # They have the same labels and types, so that their answers can be compared.
            client.promote(name)
        stack.enter_context(calling(client))
        until(lambda: seen.values("twofold_jobs_running == 1") and seen.values("twofold_interference_ratio > 0"))
        yield seen
        client.cancel(job.id)


@pytest.mark.parametrize("query", [item for _, item in panels()], ids=[name for name, _ in panels()])
def test_every_panel_has_something_to_show(query: str, live: Prometheus) -> None:
    """Each query of a panel returns a number."""
    until(lambda: live.values(fill(query, interval=LONG)))


ROLLBACKS = {"Rollbacks"}
"""Annotations that must stay empty: this server rolls nothing back."""


@pytest.mark.parametrize("query", [item for _, item in annotations()], ids=[name for name, _ in annotations()])
def test_every_annotation_is_answered(query: str, live: Prometheus, request: pytest.FixtureRequest) -> None:
    """Annotations show what happened, and nothing else."""
    if request.node.callspec.id in ROLLBACKS:
        assert live.values(fill(query, interval=LONG)) == []
        return
    until(lambda: live.values(fill(query.replace("[1m]", f"[{LONG}]"), interval=LONG)))


@pytest.mark.parametrize(("name", "metric", "label"), list(variables()))
def test_every_variable_has_values(name: str, metric: str, label: str, live: Prometheus) -> None:
    """Every variable of the dashboard has values."""
    actual = live.get(f"/api/v1/label/{label}/values", **{"match[]": fill(metric, interval=LONG)})
    assert actual, name
    assert name != "job" or actual == ["twofold"]


def test_every_rule_is_evaluated_without_an_error(live: Prometheus) -> None:
    """All rules and alerts are loaded and evaluated without errors."""
    expected = {rule.get("alert") or rule["record"] for rule in rules("rules.yml") + rules("alerts.yml")}

    def actual() -> dict[str, str]:
        groups = live.get("/api/v1/rules")["groups"]
        return {rule["name"]: rule["health"] + rule.get("lastError", "") for group in groups for rule in group["rules"]}

    until(lambda: actual() == dict.fromkeys(expected, "ok"))


@pytest.mark.parametrize("alert", rules("alerts.yml"), ids=lambda alert: alert["alert"])
def test_every_alert_has_its_metrics(alert: dict, live: Prometheus) -> None:
    """The expression of each alert is valid and its metrics exist, so silence means that all is well."""
    live.values(alert["expr"])
    for selector in selectors(alert["expr"]):
        until(lambda name=selector.name: live.values(f"count({name})"))


def test_only_the_failed_promotion_is_alerted(live: Prometheus) -> None:
    """The failed promotion fires its alert at once, and no other alert fires."""

    def firing() -> set[str]:
        alerts = live.get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    until(lambda: firing() == {"TwofoldSwapFailed"})

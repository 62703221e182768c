"""Every query that the dashboard and the rules ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
PROMETHEUS = ROOT / "deploy" / "prometheus"


def rules(name: str) -> list[dict]:
    """Read the rules of a file."""
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict:
    """Read the dashboard."""
    return json.loads((GRAFANA / "twofold.json").read_text())


def panels() -> Iterator[tuple[str, str]]:
    """Yield every query of the dashboard's panels, with the panel's title."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def annotations() -> Iterator[tuple[str, str]]:
    """Yield every query of what the dashboard marks in all panels, with its name."""
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def variables() -> Iterator[tuple[str, str, str]]:
    """Yield what one chooses among in the dashboard: its name, and the metric and the label that it is found by."""
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            yield variable["name"], metric, label


def queries() -> Iterator[tuple[str, str]]:
    """Yield every query with the name of the panel or rule that asks it."""
    yield from panels()
    yield from annotations()
    for name, metric, label in variables():
        yield name, f"max by ({label}) ({metric})"
    for rule in rules("rules.yml") + rules("alerts.yml"):
        yield rule.get("alert") or rule["record"], rule["expr"]


def fill(query: str, *, interval: str) -> str:
    """Put in what Grafana would: every job and server, and the interval of a rate."""
    return re.sub(r"\$(job|instance)", ".*", query).replace("$__rate_interval", interval)

"""All queries of the dashboard and the alert rules."""

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
    """Yield the queries of the dashboard's annotations, with their names."""
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def variables() -> Iterator[tuple[str, str, str]]:
    """Yield the dashboard's variables: name, metric and label."""
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            yield variable["name"], metric, label


def queries() -> Iterator[tuple[str, str]]:
    """Yield every query with the name of its panel or rule."""
    yield from panels()
    yield from annotations()
    for name, metric, label in variables():
        yield name, f"max by ({label}) ({metric})"
    for rule in rules("rules.yml") + rules("alerts.yml"):
        yield rule.get("alert") or rule["record"], rule["expr"]


def fill(query: str, *, interval: str) -> str:
    """Replace Grafana's variables: every job and server, and a rate interval."""
    return re.sub(r"\$(job|instance)", ".*", query).replace("$__rate_interval", interval)

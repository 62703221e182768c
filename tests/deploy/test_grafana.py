import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
BOARD = json.loads((GRAFANA / "twofold.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
UNITS = {"short", "none", "s", "bytes", "percentunit", "reqps", "ops", "watt"}
SOURCE = {"type": "prometheus", "uid": "${source}"}
each_panel = pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])


@each_panel
def test_panel_explains_itself(panel: dict) -> None:
    """A panel has a title, a description in sentences, a unit and a query."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each_panel
def test_panel_keeps_to_the_choice(panel: dict) -> None:
    """A panel queries the chosen data source for the chosen servers only."""
    assert panel["datasource"] == SOURCE
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target["expr"].count("{") == target["expr"].count('job=~"$job", instance=~"$instance"')


def test_ids() -> None:
    """Ids and titles of panels are unique."""
    for key in ("id", "title"):
        actual = [panel[key] for panel in BOARD["panels"]]
        assert len(set(actual)) == len(actual)


def test_layout() -> None:
    """Panels do not overlap, fit into 24 columns, and are in the file in the order of the page."""
    seen: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & seen, panel["title"]
        seen |= cells
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in BOARD["panels"]]
    assert places == sorted(places)


def test_variables() -> None:
    """The data source is a variable and the board has no id, so that it can be imported anywhere."""
    names = [variable["name"] for variable in BOARD["templating"]["list"]]
    assert names == ["source", "job", "instance"]
    assert BOARD["uid"] == "twofold"
    assert "id" not in BOARD


def test_rows() -> None:
    """The rows are in the order in which an engineer looks at them."""
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Now", "Traffic", "Stages", "Batching", "Checkpoints", "Adaptation", "GPUs"]


def test_provisioning() -> None:
    """The provisioning file provisions dashboards from files."""
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/twofold.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"]


def test_runbook_panels() -> None:
    """Every panel in italics in docs/runbook.md is on the dashboard."""
    runbook = (GRAFANA.parents[1] / "docs" / "runbook.md").read_text()
    names = {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", runbook)}
    assert names
    assert names <= {panel["title"] for panel in PANELS}

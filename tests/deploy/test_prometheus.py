import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from twofold_server.config.settings import ListenerSettings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
TESTS = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])


@each_alert
def test_alert_explains_itself(alert: dict) -> None:
    """An alert has a summary with its value and limit, a severity and a runbook link."""
    notes = alert["annotations"]
    assert notes["summary"].endswith(".")
    assert "$value" in notes["description"]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    page, _, anchor = notes["runbook"].partition("#")
    assert anchor == alert["alert"].lower()
    chapter = re.search(rf"^## {alert['alert']}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert chapter, f"{page} has no chapter {alert['alert']}"
    assert all(f"**{part}" in chapter[1] for part in ("Means.", "Look", "Do."))


def test_runbook_has_no_other_alert() -> None:
    """Every chapter of the runbook belongs to an existing alert."""
    chapters = re.findall(r"^## (.*)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert chapters == [alert["alert"] for alert in ALERTS]


@each_alert
def test_alert_is_tested(alert: dict) -> None:
    """There is a test in which the alert fires, and one in which it does not."""
    cases = [item for test in TESTS for item in test["alert_rule_test"] if item["alertname"] == alert["alert"]]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


def test_scrape_example() -> None:
    """The example scrapes the server's default port, with the job name that the alerts expect."""
    [job] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "twofold"
    assert job["static_configs"] == [{"targets": [ListenerSettings().metrics_listen]}]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    """Promtool accepts the rules, and their tests pass."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH; it comes with Prometheus (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

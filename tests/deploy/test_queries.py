import re
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest
import yaml
from deploy.conftest import Scrape
from prometheus_client.metrics import MetricWrapperBase
from support.monitoring_queries import ROOT, fill, queries, rules
from support.promql import Selector, grouping_labels, selectors
from twofold_server.observability.metrics import Metrics

OF_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus adds to what it scrapes."""
QUERIES = list(queries())
each_query = pytest.mark.parametrize("query", [item for _, item in QUERIES], ids=[name for name, _ in QUERIES])


@pytest.mark.parametrize(
    ("query", "actual", "labels"),
    [
        ("a > 1", [Selector("a")], set()),
        ("rate(a_total[5m]) / 5", [Selector("a_total")], set()),
        (
            'sum by (x, le) (rate(a{b="c", d=~"e|f"}[$__rate_interval]))',
            [Selector("a", [("b", "=", "c"), ("d", "=~", "e|f")])],
            {"x", "le"},
        ),
        ("x:a:b unless on (j) c == 0 or vector(0)", [Selector("x:a:b"), Selector("c")], {"j"}),
        ("time() - a and b", [Selector("a"), Selector("b")], set()),
        (
            'a{b="c"} / on (j) group_left (k) sum by (j) (d)',
            [Selector("a", [("b", "=", "c")]), Selector("d")],
            {"j", "k"},
        ),
        ("histogram_quantile(0.99, a_bucket) > 6 * 3600", [Selector("a_bucket")], set()),
    ],
)
def test_extraction(query: str, actual: list[Selector], labels: set[str]) -> None:
    """All metrics and labels of a query are extracted, and nothing else."""
    assert selectors(query) == actual
    assert grouping_labels(query) == labels


@each_query
def test_metrics_exist(query: str, scrape: Scrape) -> None:
    """Every metric of a query is exported by a real server, by Prometheus, or by a recording rule."""
    recorded = {rule["record"] for rule in rules("rules.yml")}
    actual = selectors(query)
    assert actual
    for result in actual:
        assert result.name in scrape or result.name in recorded or result.name == "up"


@each_query
def test_labels_exist(query: str, scrape: Scrape) -> None:
    """Every label of a query belongs to its metric, and every value that it matches occurs."""
    known = set(OF_PROMETHEUS)
    for selector in selectors(query):
        series = scrape.get(selector.name, [])
        labels = OF_PROMETHEUS | {label for labels in series for label in labels}
        known |= labels
        for label, sign, value in selector.matchers:
            assert label in labels, f"{selector.name} has no label {label}"
            if label in OF_PROMETHEUS:
                continue
            seen = {labels[label] for labels in series}
            if label == "code":
                seen = {code.name for code in grpc.StatusCode}
            wanted = value.split("|") if sign in {"=~", "!~"} else [value]
            assert set(wanted) <= seen, f"{selector.name} has {label} {sorted(seen)}"
    assert grouping_labels(query) <= known


def test_queries_are_valid(tmp_path: Path) -> None:
    """Prometheus parses every query, with Grafana's variables replaced."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH; it comes with Prometheus (Debian: apt-get install prometheus)")
    filled = [fill(query, interval="1m") for _, query in QUERIES]
    records = [{"record": f"query{number}", "expr": query} for number, query in enumerate(filled)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": records}]}))
    done = subprocess.run(
        [promtool, "check", "rules", "queries.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_is_shown(scrape: Scrape) -> None:
    """Every metric of the server is in the dashboard or in a rule."""
    named = {selector.name for _, query in QUERIES for selector in selectors(query)}
    bases = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named}
    exported = {var._name for var in vars(Metrics()).values() if isinstance(var, MetricWrapperBase)}
    assert exported <= bases


def test_documented_label_values(scrape: Scrape) -> None:
    """docs/metrics.md has every value of a bounded label that a real server exports."""
    table = re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    checked = 0
    for name, cell in table:
        for part in filter(None, cell.split(";")):
            label, _, values = part.partition(":")
            documented = set(re.findall(r"`(\w+)`", values))
            series = scrape.get(name) or scrape.get(f"{name}_count", [])
            seen = {labels[label.strip(" `")] for labels in series if documented}
            assert seen <= documented, name
            checked += len(seen)
    assert checked > 20

"""Figures, tables and pending runs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from support.benchmark_runs import EARLIER, SEQUENCE, make_run

from benchmarks import report
from benchmarks.adaptation.figures import Dominated, compute_figures, find_dominated, sum_margin
from benchmarks.adaptation.methods import (
    ABLATIONS,
    CLASSIC_METHODS,
    COSTLY,
    COSTLY_SCENARIOS,
    METHODS,
    OVERVIEW_METHODS,
    TWOFOLD_METHODS,
    runs_on,
)
from benchmarks.adaptation.progress import format_duration, remaining_seconds
from benchmarks.adaptation.results import (
    find_mixed_bases,
    name_results,
    read_runs,
    select_current,
    select_pending,
    write_runs,
)
from benchmarks.adaptation.runs import Run, digest_settings
from benchmarks.adaptation.sizes import QUICK_SCENARIOS
from benchmarks.adaptation.summary import summarise
from benchmarks.adaptation.table import make_overview, make_tables

pytestmark = pytest.mark.slow


def summaries(*runs: Run) -> dict:
    """Summarise runs."""
    return {(run.scenario, run.method): summarise(run) for run in runs}


def test_a_sequence_is_summed_up_as_a_whole() -> None:
    """Protected spans the first to the last step; what an early step taught counts as retained afterwards."""
    summary = summarise(make_run("s", "auto", *SEQUENCE, earlier=EARLIER))
    assert summary.new == pytest.approx((80 + 60 + 70) / 3)
    assert (summary.protected.before, summary.protected.after) == pytest.approx((90, 88))
    assert summary.retained.before == pytest.approx((90 + 80 + 60) / 3)
    assert summary.retained.after == pytest.approx((86 + 70 + 50) / 3)
    assert summary.negative_flips == 1 + 2 + 3


def test_a_replaced_label_space_has_nothing_retained() -> None:
    """Two scores remain if the new names replaced the old ones."""
    assert summarise(make_run("s", "auto", (50.0, 80.0, None))).scores == pytest.approx((50.0, 80.0))


def test_a_failed_run_has_no_figures() -> None:
    """It is not counted anywhere."""
    failed = make_run("s", "auto", error="out of memory")
    assert summarise(failed) is None
    assert compute_figures([failed]) == {}


FIGURES = {
    "the largest loss of one adaptation, of a sequence too": (
        [make_run("a", "auto", (1.0, 89.5, 90.0)), make_run("b", "auto", *SEQUENCE, earlier=EARLIER)],
        {"protected_loss_max_auto": 2.0, "sequence_loss_max": 2.0},
    ),
    "a gain is a loss below zero": (
        [make_run("a", "statistical", (1.0, 91.0, 90.0))],
        {"protected_loss_max_statistical": -1.0},
    ),
    "the retained loss of all Twofold methods": (
        [
            make_run("a", "exact", (1.0, 90.0, 86.5)),
            make_run("a", "auto", (1.0, 90.0, 88.0)),
            make_run("a", "lwf", (1.0, 90.0, 9.0)),
        ],
        {"retained_loss_max": 3.5},
    ),
    "the retained loss of a sequence's base is less than its total": (
        [
            make_run("s", "exact", *SEQUENCE, earlier=EARLIER),
            make_run("s", "lwf", (1.0, 90.0, 9.0)),
            make_run("c", "auto", (1.0, 90.0, None)),
        ],
        {"retained_loss_max": 8.0, "retained_loss_max_base": 4.0, "retained_loss_max_step": 3.0},
    ),
    "new over the ceiling": (
        [
            make_run("a", "unconstrained", (80.0, 1.0, 1.0)),
            make_run("b", "unconstrained", (50.0, 1.0, 1.0)),
            make_run("a", "auto", (76.0, 90.0, 90.0)),
            make_run("b", "auto", (50.0, 90.0, 90.0)),
            make_run("c", "auto", (10.0, 90.0, 90.0)),
            make_run("b", "exact", (45.0, 90.0, 90.0)),
        ],
        {"new_ratio_mean_auto": 0.975, "new_ratio_mean_exact": 0.9, "new_ratio_min": 0.9},
    ),
    "the margin over the best classic method, on shared scenarios": (
        [
            make_run("a", "auto", (80.0, 90.0, 90.0)),
            make_run("b", "auto", (70.0, 90.0, None)),
            make_run("a", "lwf", (80.0, 85.0, 80.0)),
            make_run("b", "lwf", (60.0, 90.0, None)),
            make_run("b", "ewc", (67.0, 90.0, None)),
            make_run("c", "agem", (99.0, 99.0, 99.0)),
        ],
        {"mean_sum_margin": 3.0},
    ),
    "scenarios in which a classic method is better in every score": (
        [
            make_run("a", "auto", (80.0, 90.0, 90.0)),
            make_run("a", "exact", (80.0, 90.0, 90.0)),
            make_run("a", "derpp", (81.0, 91.0, 90.5)),
            make_run("b", "auto", (80.0, 90.0, 90.0)),
            make_run("b", "derpp", (81.0, 91.0, 90.0)),
            make_run("c", "auto", (80.0, 90.0, None)),
            make_run("c", "derpp", (81.0, 91.0, None)),
        ],
        {"dominated_scenarios": 2},
    ),
}


@pytest.mark.parametrize(("runs", "wanted"), FIGURES.values(), ids=FIGURES)
def test_figures(runs: list[Run], wanted: dict[str, float]) -> None:
    """Each figure equals the value computed by hand."""
    figures = compute_figures(runs)
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted)


def test_exactness_is_counted_over_all_steps() -> None:
    """Changed answers add up, and the largest difference of a logit keeps its digits."""
    run = make_run("a", "exact", (1.0, 90.0, 90.0), (1.0, 90.0, 90.0), earlier=({}, {"step 0": 1.0}))
    steps = [
        msgspec.structs.replace(step, changed=changed, details={"logit_diff": worst})
        for step, changed, worst in zip(run.steps, (2, 1), (1.25e-6, 3.5e-7), strict=True)
    ]
    figures = compute_figures([msgspec.structs.replace(run, steps=tuple(steps))])
    assert figures["protected_changed_exact"] == 3
    assert figures["protected_logit_diff_exact"] == 1.25e-6


def test_figures_without_runs_are_left_out() -> None:
    """Classic methods alone give no figure about Twofold."""
    classics = [make_run("a", method, (80.0, 90.0, 90.0)) for method in ("unconstrained", "lwf")]
    assert compute_figures(classics) == {}


def test_dominated_methods_are_named() -> None:
    """A classic method with a tie in one score dominates nothing."""
    by_method = summaries(
        make_run("a", "auto", (80.0, 90.0, 90.0)),
        make_run("a", "lwf", (80.0, 95.0, 95.0)),
        make_run("a", "rehearsal", (80.1, 90.1, 90.1)),
    )
    assert find_dominated(by_method) == [Dominated("a", "auto", "rehearsal")]


def test_there_is_no_margin_over_nothing() -> None:
    """Without a classic method on the same scenario there is no margin."""
    assert (
        sum_margin(summaries(make_run("a", "auto", (1.0, 1.0, 1.0)), make_run("b", "lwf", (1.0, 1.0, 1.0))), "auto")
        is None
    )


TABLES = """### a

| method | new | protected | retained | negative flips | verdict | seconds | peak MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| unconstrained | 80.0 | 90.0 → 85.0 | 90.0 → 60.0 | 1 |  | 10 | 900 |
| lwf | failed: killed \\| at once |  |  |  |  |  |  |

### b

| method | new | protected | retained | negative flips | verdict | seconds | peak MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| auto | 70.0 | 90.0 → 89.5 |  | 1 | pass | 10 | 0 |

### means over scenarios

| method | scenarios | new | mean protected loss | largest protected loss | mean retained loss | sum | std of one run | seconds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| unconstrained | 1 | 80.0 | 5.00 | 5.00 | 30.00 | 225.0 |  | 10 |
| auto | 1 | 70.0 | 0.50 | 0.50 |  | 159.5 |  | 10 |
"""


def test_tables() -> None:
    """A table per scenario with methods in order and failures, and the means of the methods."""
    runs = [
        make_run("b", "auto", (70.0, 89.5, None), verdict="pass"),
        make_run("a", "lwf", error="killed | at once"),
        make_run("a", "unconstrained", (80.0, 85.0, 60.0), peak_memory_mib=900.0),
    ]
    assert make_tables(runs, ["a", "b", "c"]) == TABLES


OVERVIEW = """| scenario | unconstrained | auto |
| --- | ---: | ---: |
| a | 80.0 -5.0 -30.0 | - |
| b | - | 70.0 0.0 - |
"""


def test_the_overview() -> None:
    """A line per scenario: the new score and the changes of protected task and old labels; a dash for a missing value."""
    runs = [
        make_run("b", "auto", (70.0, 90.0, None)),
        make_run("a", "unconstrained", (80.0, 85.0, 60.0)),
        make_run("a", "auto", error="killed"),
    ]
    assert make_overview(runs, ["a", "b"], ["unconstrained", "auto"]) == OVERVIEW


def test_the_page_shows_the_committed_results() -> None:
    """docs/adaptation.md contains the overview of the committed results."""
    page = Path(__file__).parents[2] / "docs" / "adaptation.md"
    result = json.loads((report.RESULTS / "adapt.json").read_text(encoding="utf-8"))
    runs = msgspec.convert(result["runs"], list[Run])
    scenarios = list(dict.fromkeys(run.scenario for run in runs))
    assert len(scenarios) == 11
    assert make_overview(runs, scenarios, OVERVIEW_METHODS) in page.read_text(encoding="utf-8")


def test_nothing_makes_no_table() -> None:
    """Without runs there is no table."""
    assert make_tables([], ["a"]) == ""


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory of results."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def test_results_are_read_back(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Failed, outdated and unmeasured runs are pending, and the file keeps outdated ones."""
    wanted = {("a", method, 0): "d" for method in ("lwf", "derpp", "auto", "exact")}
    runs = [
        make_run("a", "lwf", (80.0, 90.0, 90.0)),
        make_run("a", "derpp", (80.0, 90.0, 90.0), digest="old"),
        make_run("a", "auto", error="no"),
    ]
    assert read_runs("adapt") == {}
    write_runs("adapt", {(run.scenario, run.method, run.seed): run for run in runs}, wanted, {"seeds": [0]})
    assert json.loads(capsys.readouterr().out) == {}
    by_key = read_runs("adapt")
    assert sorted(by_key.values(), key=runs.index) == runs
    assert select_current(by_key, wanted) == [runs[0], runs[2]]
    assert select_pending(by_key, wanted, list(wanted)) == [("a", "derpp", 0), ("a", "auto", 0), ("a", "exact", 0)]
    result = json.loads((results / "adapt.json").read_text())
    assert result["missing"] == ["a/derpp/0", "a/auto/0", "a/exact/0"]
    assert [run["method"] for run in result["outdated"]] == ["derpp"]


def test_scenarios_with_different_base_weights_are_named() -> None:
    """A base that was trained again may have other weights; scenarios without scores are not named."""
    runs = [
        make_run("a", "lwf", (80.0, 90.0, 90.0), base_weights="1"),
        make_run("a", "auto", (80.0, 90.0, 90.0), base_weights="2"),
        make_run("b", "lwf", (80.0, 90.0, 90.0), base_weights="2"),
        make_run("b", "auto", error="no"),
    ]
    assert find_mixed_bases(runs) == ["a"]


def test_a_digest_depends_only_on_the_settings() -> None:
    """The order of keys does not matter; any changed value changes the digest."""
    settings = {"seed": 0, "caps": {"train_first": 1, "dev_first": 3}}
    assert digest_settings(settings) == digest_settings({"caps": {"dev_first": 3, "train_first": 1}, "seed": 0})
    assert digest_settings(settings) != digest_settings({**settings, "seed": 1})


def test_only_the_standard_size_has_the_plain_name() -> None:
    """A quick run never overwrites the published figures."""
    assert [name_results(size) for size in ("standard", "quick", "full")] == ["adapt", "adapt-quick", "adapt-full"]


def test_costly_methods_run_on_five_scenarios() -> None:
    """Every method runs in a quick run; EWC and A-GEM run on five scenarios, and ablations with one seed."""
    assert len(COSTLY_SCENARIOS) == 5
    assert all(
        runs_on(method, scenario) for method in (*CLASSIC_METHODS, *TWOFOLD_METHODS) for scenario in QUICK_SCENARIOS
    )
    assert {method for method in METHODS if not runs_on(method, "sequence_snips_ner")} == {*COSTLY, *ABLATIONS}
    assert {method for method in METHODS if runs_on(method, "small_snips_to_chatbot_ner", again=True)} == {
        *CLASSIC_METHODS,
        *TWOFOLD_METHODS,
    }


PENDING = {
    "nothing is known": ([], [("a", "lwf", 0)], None),
    "its scenario is known": (
        [make_run("a", "lwf", wall_seconds=30.0), make_run("b", "auto")],
        [("a", "auto", 0)],
        30.0,
    ),
    "its method is known": ([make_run("a", "lwf", wall_seconds=30.0), make_run("b", "auto")], [("c", "lwf", 0)], 30.0),
    "neither is known": ([make_run("a", "lwf", wall_seconds=30.0), make_run("b", "auto")], [("c", "exact", 0)], 45.0),
    "several are pending": ([make_run("a", "lwf", wall_seconds=30.0)], [("a", "auto", 0), ("b", "auto", 2)], 60.0),
    "failures do not count": ([make_run("a", "lwf", error="no")], [("a", "auto", 0)], None),
    "nothing is pending": ([make_run("a", "lwf")], [], 0.0),
}


@pytest.mark.parametrize(("completed", "pending", "seconds"), PENDING.values(), ids=PENDING)
def test_the_remaining_time_is_estimated(completed: list, pending: list, seconds: float | None) -> None:
    """The estimate uses the most similar completed runs."""
    assert remaining_seconds(completed, pending) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(10, "less than a minute"), (95, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    """Durations are in minutes and hours."""
    assert format_duration(seconds) == text

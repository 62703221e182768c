"""Figures, tables and what is left to do, from invented cells."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from support.benchmark_runs import EARLIER, SEQUENCE, cell

from benchmarks import report
from benchmarks.adaptation.figures import Dominated, compute_figures, find_dominated, sum_margin
from benchmarks.adaptation.methods import CLASSICS, COSTLY, COSTLY_SCENARIOS, OURS, PARTS, ROWS, is_run
from benchmarks.adaptation.methods import OVERVIEW as OVERVIEW_ROWS
from benchmarks.adaptation.progress import remaining_seconds, spell
from benchmarks.adaptation.results import (
    find_mixed_bases,
    name_results,
    read_cells,
    select_current,
    select_left,
    write_cells,
)
from benchmarks.adaptation.runs import Cell, digest_settings
from benchmarks.adaptation.sizes import QUICK_SCENARIOS
from benchmarks.adaptation.summary import summarise
from benchmarks.adaptation.table import make_overview, make_tables

pytestmark = pytest.mark.slow


def summaries(*cells: Cell) -> dict:
    """Sum cells up."""
    return {(one.scenario, one.row): summarise(one) for one in cells}


def test_a_sequence_is_summed_up_as_a_whole() -> None:
    """Protected runs from first to last; what an early step taught counts as retained from then on."""
    one = summarise(cell("s", "auto", *SEQUENCE, earlier=EARLIER))
    assert one.new == pytest.approx((80 + 60 + 70) / 3)
    assert (one.protected.before, one.protected.after) == pytest.approx((90, 88))
    assert one.retained.before == pytest.approx((90 + 80 + 60) / 3)
    assert one.retained.after == pytest.approx((86 + 70 + 50) / 3)
    assert one.negative_flips == 1 + 2 + 3


def test_a_replaced_label_space_has_nothing_retained() -> None:
    """Two figures are left where the new names took the old ones' place."""
    assert summarise(cell("s", "auto", (50.0, 80.0, None))).figures == pytest.approx((50.0, 80.0))


def test_a_failed_cell_has_no_figures() -> None:
    """It is not counted anywhere."""
    failed = cell("s", "auto", error="out of memory")
    assert summarise(failed) is None
    assert compute_figures([failed]) == {}


FIGURES = {
    "the largest loss of one adaptation, of a sequence too": (
        [cell("a", "auto", (1.0, 89.5, 90.0)), cell("b", "auto", *SEQUENCE, earlier=EARLIER)],
        {"protected_loss_max_auto": 2.0, "sequence_loss_max": 2.0},
    ),
    "a gain is a loss below zero": (
        [cell("a", "statistical", (1.0, 91.0, 90.0))],
        {"protected_loss_max_statistical": -1.0},
    ),
    "what all rows of ours forgot": (
        [
            cell("a", "exact", (1.0, 90.0, 86.5)),
            cell("a", "auto", (1.0, 90.0, 88.0)),
            cell("a", "lwf", (1.0, 90.0, 9.0)),
        ],
        {"retained_loss_max": 3.5},
    ),
    "what a sequence forgot of its base is less than what it forgot in all": (
        [
            cell("s", "exact", *SEQUENCE, earlier=EARLIER),
            cell("s", "lwf", (1.0, 90.0, 9.0)),
            cell("c", "auto", (1.0, 90.0, None)),
        ],
        {"retained_loss_max": 8.0, "retained_loss_max_base": 4.0, "retained_loss_max_step": 3.0},
    ),
    "new over the ceiling": (
        [
            cell("a", "unconstrained", (80.0, 1.0, 1.0)),
            cell("b", "unconstrained", (50.0, 1.0, 1.0)),
            cell("a", "auto", (76.0, 90.0, 90.0)),
            cell("b", "auto", (50.0, 90.0, 90.0)),
            cell("c", "auto", (10.0, 90.0, 90.0)),
            cell("b", "exact", (45.0, 90.0, 90.0)),
        ],
        {"new_ratio_mean_auto": 0.975, "new_ratio_mean_exact": 0.9, "new_ratio_min": 0.9},
    ),
    "the margin is that over the best classic, on shared scenarios": (
        [
            cell("a", "auto", (80.0, 90.0, 90.0)),
            cell("b", "auto", (70.0, 90.0, None)),
            cell("a", "lwf", (80.0, 85.0, 80.0)),
            cell("b", "lwf", (60.0, 90.0, None)),
            cell("b", "ewc", (67.0, 90.0, None)),
            cell("c", "agem", (99.0, 99.0, 99.0)),
        ],
        {"mean_sum_margin": 3.0},
    ),
    "scenarios in which a classic is better at everything": (
        [
            cell("a", "auto", (80.0, 90.0, 90.0)),
            cell("a", "exact", (80.0, 90.0, 90.0)),
            cell("a", "derpp", (81.0, 91.0, 90.5)),
            cell("b", "auto", (80.0, 90.0, 90.0)),
            cell("b", "derpp", (81.0, 91.0, 90.0)),
            cell("c", "auto", (80.0, 90.0, None)),
            cell("c", "derpp", (81.0, 91.0, None)),
        ],
        {"dominated_scenarios": 2},
    ),
}


@pytest.mark.parametrize(("cells", "wanted"), FIGURES.values(), ids=FIGURES)
def test_figures(cells: list[Cell], wanted: dict[str, float]) -> None:
    """Each figure is what its definition gives by hand."""
    found = compute_figures(cells)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_exactness_is_counted_over_all_steps() -> None:
    """Changed answers add up, and the largest difference of a logit keeps its digits."""
    one = cell("a", "exact", (1.0, 90.0, 90.0), (1.0, 90.0, 90.0), earlier=({}, {"step 0": 1.0}))
    steps = [
        msgspec.structs.replace(step, changed=changed, more={"logit_diff": worst})
        for step, changed, worst in zip(one.steps, (2, 1), (1.25e-6, 3.5e-7), strict=True)
    ]
    found = compute_figures([msgspec.structs.replace(one, steps=tuple(steps))])
    assert found["protected_changed_exact"] == 3
    assert found["protected_logit_diff_exact"] == 1.25e-6


def test_figures_without_cells_are_left_out() -> None:
    """A benchmark of which only classics ran says nothing about ours."""
    classics = [cell("a", row, (80.0, 90.0, 90.0)) for row in ("unconstrained", "lwf")]
    assert compute_figures(classics) == {}


def test_dominated_rows_are_named() -> None:
    """A classic that ties in one figure dominates nothing."""
    found = summaries(
        cell("a", "auto", (80.0, 90.0, 90.0)),
        cell("a", "lwf", (80.0, 95.0, 95.0)),
        cell("a", "rehearsal", (80.1, 90.1, 90.1)),
    )
    assert find_dominated(found) == [Dominated("a", "auto", "rehearsal")]


def test_there_is_no_margin_over_nothing() -> None:
    """Without a classic on the same scenario there is nothing to compare with."""
    assert sum_margin(summaries(cell("a", "auto", (1.0, 1.0, 1.0)), cell("b", "lwf", (1.0, 1.0, 1.0))), "auto") is None


TABLES = """### a

| row | new | protected | retained | negative flips | verdict | seconds | peak MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| unconstrained | 80.0 | 90.0 → 85.0 | 90.0 → 60.0 | 1 |  | 10 | 900 |
| lwf | failed: killed \\| at once |  |  |  |  |  |  |

### b

| row | new | protected | retained | negative flips | verdict | seconds | peak MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| auto | 70.0 | 90.0 → 89.5 |  | 1 | pass | 10 | 0 |

### means over scenarios

| row | scenarios | new | protected loss | largest | retained loss | sum | of one run | seconds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| unconstrained | 1 | 80.0 | 5.00 | 5.00 | 30.00 | 225.0 |  | 10 |
| auto | 1 | 70.0 | 0.50 | 0.50 |  | 159.5 |  | 10 |
"""


def test_tables() -> None:
    """A table a scenario, its rows in their order, failures in their place, and the rows' means."""
    cells = [
        cell("b", "auto", (70.0, 89.5, None), verdict="pass"),
        cell("a", "lwf", error="killed | at once"),
        cell("a", "unconstrained", (80.0, 85.0, 60.0), peak_memory_mib=900.0),
    ]
    assert make_tables(cells, ["a", "b", "c"]) == TABLES


OVERVIEW = """| scenario | unconstrained | auto |
| --- | ---: | ---: |
| a | 80.0 -5.0 -30.0 | - |
| b | - | 70.0 0.0 - |
"""


def test_the_overview() -> None:
    """A line a scenario: what is new, and what the protected task and old labels gained; a dash where there is nothing."""
    cells = [
        cell("b", "auto", (70.0, 90.0, None)),
        cell("a", "unconstrained", (80.0, 85.0, 60.0)),
        cell("a", "auto", error="killed"),
    ]
    assert make_overview(cells, ["a", "b"], ["unconstrained", "auto"]) == OVERVIEW


def test_the_page_shows_what_was_measured() -> None:
    """docs/adaptation.md holds the overview of the committed results as it is."""
    page = Path(__file__).parents[2] / "docs" / "adaptation.md"
    written = json.loads((report.RESULTS / "adapt.json").read_text(encoding="utf-8"))
    cells = msgspec.convert(written["cells"], list[Cell])
    scenarios = list(dict.fromkeys(cell.scenario for cell in cells))
    assert len(scenarios) == 11
    assert make_overview(cells, scenarios, OVERVIEW_ROWS) in page.read_text(encoding="utf-8")


def test_nothing_makes_no_table() -> None:
    """Before the first cell there is nothing to show."""
    assert make_tables([], ["a"]) == ""


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of results of its own."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def test_finished_cells_are_found_again(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written is read back; failed, changed and unmeasured cells are left to do, and changed ones are kept."""
    wanted = {("a", row, 0): "d" for row in ("lwf", "derpp", "auto", "exact")}
    given = [
        cell("a", "lwf", (80.0, 90.0, 90.0)),
        cell("a", "derpp", (80.0, 90.0, 90.0), digest="old"),
        cell("a", "auto", error="no"),
    ]
    assert read_cells("adapt") == {}
    write_cells("adapt", {(one.scenario, one.row, one.seed): one for one in given}, wanted, {"seeds": [0]})
    assert json.loads(capsys.readouterr().out) == {}
    cells = read_cells("adapt")
    assert sorted(cells.values(), key=given.index) == given
    assert select_current(cells, wanted) == [given[0], given[2]]
    assert select_left(cells, wanted, list(wanted)) == [("a", "derpp", 0), ("a", "auto", 0), ("a", "exact", 0)]
    written = json.loads((results / "adapt.json").read_text())
    assert written["missing"] == ["a/derpp/0", "a/auto/0", "a/exact/0"]
    assert [one["row"] for one in written["outdated"]] == ["derpp"]


def test_rows_that_began_with_other_weights_are_named() -> None:
    """A base that was trained again may be another one: the scenario is named, and one without scores is not."""
    given = [
        cell("a", "lwf", (80.0, 90.0, 90.0), base_weights="1"),
        cell("a", "auto", (80.0, 90.0, 90.0), base_weights="2"),
        cell("b", "lwf", (80.0, 90.0, 90.0), base_weights="2"),
        cell("b", "auto", error="no"),
    ]
    assert find_mixed_bases(given) == ["a"]


def test_a_digest_is_of_the_settings_alone() -> None:
    """Order means nothing; any changed value is another digest."""
    settings = {"seed": 0, "rates": {"head": 1e-3, "probe": 3e-3}}
    assert digest_settings(settings) == digest_settings({"rates": {"probe": 3e-3, "head": 1e-3}, "seed": 0})
    assert digest_settings(settings) != digest_settings({**settings, "seed": 1})


def test_only_the_standard_size_has_the_plain_name() -> None:
    """A short run never stands where the published figures are."""
    assert [name_results(size) for size in ("standard", "quick", "full")] == ["adapt", "adapt-quick", "adapt-full"]


def test_costly_rows_run_on_five_scenarios() -> None:
    """Every row runs in a quick run; EWC and A-GEM run on five scenarios in all, and parts with one seed alone."""
    assert len(COSTLY_SCENARIOS) == 5
    assert all(is_run(row, scenario) for row in (*CLASSICS, *OURS) for scenario in QUICK_SCENARIOS)
    assert {row for row in ROWS if not is_run(row, "sequence_snips_ner")} == {*COSTLY, *PARTS}
    assert {row for row in ROWS if is_run(row, "small_snips_to_chatbot_ner", again=True)} == {*CLASSICS, *OURS}


LEFT = {
    "nothing is known": ([], [("a", "lwf", 0)], None),
    "its scenario is known": ([cell("a", "lwf", wall_seconds=30.0), cell("b", "auto")], [("a", "auto", 0)], 30.0),
    "its row is known": ([cell("a", "lwf", wall_seconds=30.0), cell("b", "auto")], [("c", "lwf", 0)], 30.0),
    "neither is known": ([cell("a", "lwf", wall_seconds=30.0), cell("b", "auto")], [("c", "exact", 0)], 45.0),
    "several are left": ([cell("a", "lwf", wall_seconds=30.0)], [("a", "auto", 0), ("b", "auto", 2)], 60.0),
    "failures say nothing": ([cell("a", "lwf", error="no")], [("a", "auto", 0)], None),
    "nothing is left": ([cell("a", "lwf")], [], 0.0),
}


@pytest.mark.parametrize(("done", "left", "seconds"), LEFT.values(), ids=LEFT)
def test_the_time_left_is_guessed_from_what_is_known(done: list, left: list, seconds: float | None) -> None:
    """The nearest cells that are done say how long one takes."""
    assert remaining_seconds(done, left) == seconds


@pytest.mark.parametrize(
    ("seconds", "said"), [(10, "less than a minute"), (95, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_times_are_spelled_out(seconds: float, said: str) -> None:
    """A person reads minutes and hours."""
    assert spell(seconds) == said

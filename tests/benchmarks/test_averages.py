"""Several runs of one cell: their means, and by how much one of them is off."""

from __future__ import annotations

import msgspec
import pytest
from support.benchmark_runs import EARLIER, SEQUENCE, cell

from benchmarks.adaptation.averages import average, spreads
from benchmarks.adaptation.figures import compute_figures
from benchmarks.adaptation.runs import Cell
from benchmarks.adaptation.summary import summarise
from benchmarks.adaptation.table import make_overview, make_tables

pytestmark = pytest.mark.slow

RUNS = [
    cell("a", "auto", (80.0, 90.0, 86.0), verdict="pass", peak_memory_mib=900.0),
    cell("a", "auto", (84.0, 89.0, 88.0), seed=1, verdict="fail", peak_memory_mib=800.0),
    cell("a", "auto", (82.0, 90.4, 87.0), seed=2, verdict="pass"),
]
"""Their sums are 256, 261 and 259.4."""


def test_the_mean_of_runs_stands_for_them() -> None:
    """Scores are means, verdicts are all that there were, memory is the largest; other cells stay as they are."""
    other = cell("a", "lwf", (70.0, 90.0, 90.0))
    one, unchanged = average([RUNS[0], other, *RUNS[1:]])
    assert unchanged is other
    assert summarise(one).figures == pytest.approx((82.0, 89.8, 87.0))
    assert (one.verdict, one.peak_memory_mib) == ("pass, fail", 900.0)


def test_a_sequence_is_averaged_step_by_step() -> None:
    """Every figure of every step is a mean, those of earlier steps too."""
    again = tuple((new + 2, kept - 1, held) for new, kept, held in SEQUENCE)
    more = tuple({name: value + 4 for name, value in one.items()} for one in EARLIER)
    (one,) = average([cell("s", "auto", *SEQUENCE, earlier=EARLIER), cell("s", "auto", *again, earlier=more, seed=1)])
    assert [100 * step.new.after for step in one.steps] == pytest.approx([81.0, 61.0, 71.0])
    assert [100 * step.protected.after for step in one.steps] == pytest.approx([88.5, 86.5, 87.5])
    assert one.steps[2].earlier == pytest.approx({"step 0": 0.72, "step 1": 0.52})


def test_a_run_that_failed_is_no_run() -> None:
    """It takes no part in a mean, and where all failed the first one says why."""
    failed = [cell("a", "auto", error=why, seed=seed) for seed, why in enumerate(("killed", "no"))]
    assert average(failed) == [failed[0]]
    assert average([failed[0], RUNS[1]]) == [RUNS[1]]


def test_one_run_is_off_by_the_standard_deviation() -> None:
    """It is that of the sums; a cell that was run once has none."""
    found = spreads([*RUNS, cell("a", "lwf", (70.0, 90.0, 90.0))])
    assert found == pytest.approx({("a", "auto"): 6.52**0.5})


def test_figures_are_of_means_and_name_the_worst_run() -> None:
    """The mean loses 0.2 of what is protected, one run 1.0; without a second run there is no worst one."""
    found = compute_figures(RUNS)
    assert found["protected_loss_max_auto"] == pytest.approx(0.2)
    assert found["protected_loss_worst_run_auto"] == pytest.approx(1.0)
    assert "protected_loss_worst_run_auto" not in compute_figures(RUNS[:1])


def test_what_the_gate_stops_is_told_apart() -> None:
    """The worst candidate that would serve is not the worst one that was trained."""
    runs = [
        msgspec.structs.replace(one, steps=(msgspec.structs.replace(one.steps[0], verdict=verdict),))
        for one, verdict in zip(RUNS, ("pass", "inconclusive", "pass"), strict=True)
    ]
    found = compute_figures(runs)
    assert found["protected_loss_passed_auto"] == pytest.approx(0.0)
    assert found["protected_loss_worst_run_auto"] == pytest.approx(1.0)


def test_one_inexact_run_is_not_averaged_away() -> None:
    """Changed answers of all runs count, and the largest difference of a logit of any."""
    exact = [msgspec.structs.replace(one, row="exact") for one in RUNS]
    steps = [msgspec.structs.replace(exact[2].steps[0], changed=2, more={"logit_diff": 3e-6})]
    found = compute_figures([*exact[:2], msgspec.structs.replace(exact[2], steps=tuple(steps))])
    assert (found["protected_changed_exact"], found["protected_logit_diff_exact"]) == (2, 3e-6)


TABLES: list[Cell] = [*RUNS, cell("b", "auto", (60.0, 90.0, None)), cell("b", "auto", (62.0, 90.0, None), seed=1)]


def test_tables_show_means_and_chance() -> None:
    """A line for each row, and after the mean sum by how much one run is off: root mean square of 2.53 and 1.41."""
    written = make_tables(TABLES, ["a", "b"])
    assert "| auto | 82.0 | 90.0 → 89.8 | 90.0 → 87.0 | 1 | pass, fail | 10 | 900 |" in written
    assert "| auto | 2 | 71.5 | 0.10 | 0.20 | 3.00 | 204.9 | ± 2.1 | 10 |" in written
    assert "| a | 82.0 -0.2 -3.0 |" in make_overview(TABLES, ["a", "b"], ["auto"])

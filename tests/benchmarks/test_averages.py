"""Means over seeds, and the standard deviation of one run."""

from __future__ import annotations

import msgspec
import pytest
from support.benchmark_runs import EARLIER, SEQUENCE, make_run

from benchmarks.adaptation.averages import average, spreads
from benchmarks.adaptation.figures import compute_figures
from benchmarks.adaptation.runs import Run
from benchmarks.adaptation.summary import summarise
from benchmarks.adaptation.table import make_overview, make_tables

pytestmark = pytest.mark.slow

RUNS = [
    make_run("a", "auto", (80.0, 90.0, 86.0), verdict="pass", peak_memory_mib=900.0),
    make_run("a", "auto", (84.0, 89.0, 88.0), seed=1, verdict="fail", peak_memory_mib=800.0),
    make_run("a", "auto", (82.0, 90.4, 87.0), seed=2, verdict="pass"),
]
"""Their sums are 256, 261 and 259.4."""


def test_the_mean_of_runs_stands_for_them() -> None:
    """Scores are averaged, verdicts are listed, memory is the maximum; other runs stay unchanged."""
    other_method = make_run("a", "lwf", (70.0, 90.0, 90.0))
    averaged, unchanged = average([RUNS[0], other_method, *RUNS[1:]])
    assert unchanged is other_method
    assert summarise(averaged).scores == pytest.approx((82.0, 89.8, 87.0))
    assert (averaged.verdict, averaged.peak_memory_mib) == ("pass, fail", 900.0)


def test_a_sequence_is_averaged_step_by_step() -> None:
    """Every score of every step is averaged, including those of earlier steps."""
    second = tuple((new + 2, protected - 1, retained) for new, protected, retained in SEQUENCE)
    earlier = tuple({name: value + 4 for name, value in scores.items()} for scores in EARLIER)
    (averaged,) = average(
        [make_run("s", "auto", *SEQUENCE, earlier=EARLIER), make_run("s", "auto", *second, earlier=earlier, seed=1)]
    )
    assert [100 * step.new.after for step in averaged.steps] == pytest.approx([81.0, 61.0, 71.0])
    assert [100 * step.protected.after for step in averaged.steps] == pytest.approx([88.5, 86.5, 87.5])
    assert averaged.steps[2].earlier == pytest.approx({"step 0": 0.72, "step 1": 0.52})


def test_failed_runs_do_not_count() -> None:
    """A failed run is not averaged; if all failed, the first one stands for all and has the reason."""
    failed = [make_run("a", "auto", error=reason, seed=seed) for seed, reason in enumerate(("killed", "no"))]
    assert average(failed) == [failed[0]]
    assert average([failed[0], RUNS[1]]) == [RUNS[1]]


def test_the_spread_is_the_standard_deviation() -> None:
    """It is the deviation of the sums of scores; a method with one run has none."""
    deviations = spreads([*RUNS, make_run("a", "lwf", (70.0, 90.0, 90.0))])
    assert deviations == pytest.approx({("a", "auto"): 6.52**0.5})


def test_figures_are_of_means_and_name_the_worst_run() -> None:
    """The mean protected loss is 0.2, the largest of a single run 1.0; a single seed has no worst run."""
    figures = compute_figures(RUNS)
    assert figures["protected_loss_max_auto"] == pytest.approx(0.2)
    assert figures["protected_loss_worst_run_auto"] == pytest.approx(1.0)
    assert "protected_loss_worst_run_auto" not in compute_figures(RUNS[:1])


def test_rejected_candidates_have_a_separate_figure() -> None:
    """The worst candidate that passed the gate is not the worst that was trained."""
    runs = [
        msgspec.structs.replace(run, steps=(msgspec.structs.replace(run.steps[0], verdict=verdict),))
        for run, verdict in zip(RUNS, ("pass", "inconclusive", "pass"), strict=True)
    ]
    figures = compute_figures(runs)
    assert figures["protected_loss_passed_auto"] == pytest.approx(0.0)
    assert figures["protected_loss_worst_run_auto"] == pytest.approx(1.0)


def test_one_inexact_run_is_not_averaged_away() -> None:
    """Changed answers are summed over all runs, and the logit difference is the largest of any run."""
    exact = [msgspec.structs.replace(run, method="exact") for run in RUNS]
    steps = [msgspec.structs.replace(exact[2].steps[0], changed=2, details={"logit_diff": 3e-6})]
    figures = compute_figures([*exact[:2], msgspec.structs.replace(exact[2], steps=tuple(steps))])
    assert (figures["protected_changed_exact"], figures["protected_logit_diff_exact"]) == (2, 3e-6)


TABLES: list[Run] = [
    *RUNS,
    make_run("b", "auto", (60.0, 90.0, None)),
    make_run("b", "auto", (62.0, 90.0, None), seed=1),
]


def test_tables_show_means_and_deviations() -> None:
    """There is a line per method; after the mean sum comes the deviation of one run, the root mean square of 2.53 and 1.41."""
    tables = make_tables(TABLES, ["a", "b"])
    assert "| auto | 82.0 | 90.0 → 89.8 | 90.0 → 87.0 | 1 | pass, fail | 10 | 900 |" in tables
    assert "| auto | 2 | 71.5 | 0.10 | 0.20 | 3.00 | 204.9 | ± 2.1 | 10 |" in tables
    assert "| a | 82.0 -0.2 -3.0 |" in make_overview(TABLES, ["a", "b"], ["auto"])

"""The runs as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.adaptation.averages import average, spreads
from benchmarks.adaptation.methods import METHODS
from benchmarks.adaptation.runs import Change, Run
from benchmarks.adaptation.summary import Summary, mean, summarise

HEADER = ("method", "new", "protected", "retained", "negative flips", "verdict", "seconds", "peak MiB")
MEANS_HEADER = (
    "method",
    "scenarios",
    "new",
    "mean protected loss",
    "largest protected loss",
    "mean retained loss",
    "sum",
    "std of one run",
    "seconds",
)


def make_tables(runs: Iterable[Run], scenarios: Sequence[str]) -> str:
    """Return a table for each scenario that has runs, in the given order, and one of the methods' means."""
    runs = list(runs)
    averaged, deviations = average(runs), spreads(runs)
    parts = []
    for scenario in scenarios:
        of_scenario = [run for run in averaged if run.scenario == scenario]
        if of_scenario:
            of_scenario.sort(key=lambda run: METHODS.index(run.method))
            parts.append(f"### {scenario}\n\n{_table(HEADER, map(_line, of_scenario))}")
    means = [_means(method, [run for run in averaged if run.method == method], deviations) for method in METHODS]
    if any(means):
        parts.append(f"### means over scenarios\n\n{_table(MEANS_HEADER, filter(None, means))}")
    return "\n".join(parts)


def make_overview(runs: Iterable[Run], scenarios: Sequence[str], methods: Sequence[str]) -> str:
    """Return a table with a line per scenario and a column per method.

    A cell holds the new score and the changes of the protected task and of the old labels. A dash stands for a missing run
    and for old labels that were replaced.
    """
    summaries = {(run.scenario, run.method): summarise(run) for run in average(runs)}
    return _table(
        ("scenario", *methods),
        [(scenario, *(_brief(summaries.get((scenario, method))) for method in methods)) for scenario in scenarios],
    )


def _brief(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    retained = "-" if summary.retained is None else _signed(-summary.retained.loss)
    return f"{summary.new:.1f} {_signed(-summary.protected.loss)} {retained}"


def _signed(points: float) -> str:
    """Format a change with its sign; a rounded zero has none."""
    text = f"{points:+.1f}"
    return "0.0" if text[1:] == "0.0" else text


def _line(run: Run) -> list[str]:
    summary = summarise(run)
    if summary is None:
        return [run.method, f"failed: {run.error}", *[""] * (len(HEADER) - 2)]
    return [
        run.method,
        f"{summary.new:.1f}",
        _change(summary.protected),
        "" if summary.retained is None else _change(summary.retained),
        f"{summary.negative_flips:.3g}",
        run.verdict or "",
        f"{run.seconds:.0f}",
        f"{run.peak_memory_mib:.0f}",
    ]


def _means(method: str, runs: Sequence[Run], deviations: Mapping[tuple[str, str], float]) -> list[str]:
    """Return a method's line of means over scenarios; nothing without scores.

    The deviation is that of the sum in one run on one scenario: the root mean square over the scenarios.
    """
    summaries = [summary for run in runs if (summary := summarise(run)) is not None]
    if not summaries:
        return []
    protected = [summary.protected.loss for summary in summaries]
    retained = [summary.retained.loss for summary in summaries if summary.retained is not None]
    squares = [deviations[key] ** 2 for run in runs if (key := (run.scenario, run.method)) in deviations]
    return [
        method,
        str(len(summaries)),
        f"{mean([summary.new for summary in summaries]):.1f}",
        f"{mean(protected):.2f}",
        f"{max(protected):.2f}",
        f"{mean(retained):.2f}" if retained else "",
        f"{mean([sum(summary.scores) for summary in summaries]):.1f}",
        f"± {mean(squares) ** 0.5:.1f}" if squares else "",
        f"{mean([run.seconds for run in runs if run.steps]):.0f}",
    ]


def _change(change: Change) -> str:
    return f"{change.before:.1f} → {change.after:.1f}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in (header, rule, *lines))


def _escape(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

"""The benchmark's named figures, computed from its runs. Losses are in points, ratios are fractions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.adaptation.averages import average
from benchmarks.adaptation.methods import CEILING, CLASSIC_METHODS, TWOFOLD_METHODS
from benchmarks.adaptation.runs import Run
from benchmarks.adaptation.summary import Summary, mean, summarise

LOSSY_METHODS = ("statistical", "auto")
"""The methods that may lose some of the protected task, within a margin."""
DEFAULT_METHOD = "auto"
"""Twofold's default, compared with the classic methods by its sum of scores."""

Summaries = Mapping[tuple[str, str], Summary]
"""Summaries by scenario and method."""


@dataclass(frozen=True, slots=True)
class Dominated:
    """Name a Twofold method that a classic method beats in every score of a scenario."""

    scenario: str
    method: str
    by: str


def compute_figures(runs: Iterable[Run]) -> dict[str, float]:
    """Return every figure for which there are runs.

    Figures are means over seeds. `protected_loss_worst_run_*` is the largest loss of a single run, and
    `protected_loss_passed_*` the largest among runs that passed the gate and would therefore be served. Exactness is checked
    for every run. `retained_loss_max` includes what earlier steps of a sequence taught, `retained_loss_max_base` covers the
    base's test set only ("retained" in scenarios.json), and `retained_loss_max_step` is the loss of a single adaptation.
    """
    scored = [run for run in runs if run.steps]
    averaged = average(scored)
    summaries = {(run.scenario, run.method): summary for run in averaged if (summary := summarise(run)) is not None}
    figures: dict[str, float | None] = {}
    for method in LOSSY_METHODS:
        figures[f"protected_loss_max_{method}"] = largest(protected_losses(averaged, [method]))
        if len(scored) > len(averaged):
            figures[f"protected_loss_worst_run_{method}"] = largest(protected_losses(scored, [method]))
        figures[f"protected_loss_passed_{method}"] = largest(protected_losses(scored, [method], passed=True))
    exact = [step for run in scored if run.method == "exact" for step in run.steps]
    figures["protected_changed_exact"] = sum(step.changed for step in exact) if exact else None
    figures["protected_logit_diff_exact"] = largest(
        float(step.details["logit_diff"]) for step in exact if "logit_diff" in step.details
    )
    figures["retained_loss_max"] = largest(
        summary.retained.loss
        for (_, method), summary in summaries.items()
        if method in TWOFOLD_METHODS and summary.retained is not None
    )
    figures["retained_loss_max_base"] = largest(retained_losses(averaged, TWOFOLD_METHODS))
    figures["retained_loss_max_step"] = largest(retained_losses_of_steps(averaged, TWOFOLD_METHODS))
    ratios = {method: new_ratios(summaries, method) for method in TWOFOLD_METHODS}
    for method in TWOFOLD_METHODS:
        figures[f"new_ratio_mean_{method}"] = mean(ratios[method]) if ratios[method] else None
    figures["new_ratio_min"] = min((ratio for values in ratios.values() for ratio in values), default=None)
    methods = {method for _, method in summaries}
    if methods.intersection(TWOFOLD_METHODS) and methods.intersection(CLASSIC_METHODS):
        figures["dominated_scenarios"] = len({entry.scenario for entry in find_dominated(summaries)})
    figures["mean_sum_margin"] = sum_margin(summaries, DEFAULT_METHOD)
    figures["sequence_loss_max"] = largest(
        summaries[run.scenario, run.method].protected.loss
        for run in averaged
        if run.method in LOSSY_METHODS and len(run.steps) > 1
    )
    # Differences of logits are about 1e-6; all other figures are read to two decimals.
    return {name: value if "logit" in name else round(value, 4) for name, value in figures.items() if value is not None}


def protected_losses(runs: Iterable[Run], methods: Sequence[str], *, passed: bool = False) -> list[float]:
    """Return the protected task's loss in each adaptation, in points; every step of a sequence is an adaptation.

    With *passed*, include only adaptations that passed the gate.
    """
    steps = [step for run in runs if run.method in methods for step in run.steps]
    return [100 * step.protected.loss for step in steps if not passed or step.verdict == "pass"]


def retained_losses(runs: Iterable[Run], methods: Sequence[str]) -> Iterator[float]:
    """Yield the loss of the base's own labels from before the first step to after the last, in points."""
    for run in runs:
        first, last = run.steps[0].retained, run.steps[-1].retained
        if run.method in methods and first is not None and last is not None:
            yield 100 * (first.before - last.after)


def retained_losses_of_steps(runs: Iterable[Run], methods: Sequence[str]) -> Iterator[float]:
    """Yield the loss of the base's own labels in each adaptation, in points."""
    for run in runs:
        if run.method in methods:
            yield from (100 * step.retained.loss for step in run.steps if step.retained is not None)


def new_ratios(summaries: Summaries, method: str) -> list[float]:
    """Return a method's new score divided by that of unconstrained fine-tuning, for each scenario."""
    return [
        summary.new / ceiling.new
        for (scenario, name), summary in summaries.items()
        if name == method and (ceiling := summaries.get((scenario, CEILING))) is not None and ceiling.new
    ]


def find_dominated(summaries: Summaries) -> list[Dominated]:
    """Return every Twofold method that a classic method beats in all scores of a scenario."""
    return [
        Dominated(scenario, method, classic)
        for (scenario, method), summary in summaries.items()
        if method in TWOFOLD_METHODS
        for classic in CLASSIC_METHODS
        if (rival := summaries.get((scenario, classic))) is not None
        and all(theirs > ours for theirs, ours in zip(rival.scores, summary.scores, strict=True))
    ]


def sum_margin(summaries: Summaries, method: str) -> float | None:
    """Return by how many points a method's mean sum of scores exceeds that of the best classic method.

    Not every method runs on every scenario: each classic method is compared on the scenarios that both have.
    """
    margins = []
    for classic in CLASSIC_METHODS:
        shared = [scenario for scenario, name in summaries if name == classic and (scenario, method) in summaries]
        if shared:
            ours, theirs = (
                mean([sum(summaries[scenario, name].scores) for scenario in shared]) for name in (method, classic)
            )
            margins.append(ours - theirs)
    return min(margins) if margins else None


def largest(values: Iterable[float]) -> float | None:
    """Return the largest value, or None without values."""
    return max(values, default=None)

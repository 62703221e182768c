"""Apply the gate to a plan's scores, and turn its verdict into an event."""

from __future__ import annotations

from twofold_checkpoint.protocol.events import Compared, GateEvaluated
from twofold_checkpoint.protocol.job import Statistical

from twofold_trainer.evaluation.evaluator import JobEvaluator, Scores
from twofold_trainer.evaluation.flips import FLIPS_SHOWN
from twofold_trainer.evaluation.gate import GateResult, Pair, evaluate_gate
from twofold_trainer.planning.plan import Plan
from twofold_trainer.scoring.scores import HeadScore


def evaluate_candidate(
    plan: Plan,
    before: Scores,
    after: Scores,
    *,
    approved: HeadScore | None = None,
    trained: bool = True,
    exact: bool = False,
) -> GateResult:
    """Apply the gate to the scores of a plan's model before and after training; see gate.evaluate_gate.

    *approved* is the protected score of the checkpoint that a person last approved, if it is not the base.
    """
    protection = plan.request.protection
    return evaluate_gate(
        protected=Pair(before["protected"], after["protected"]),
        retained=Pair(before["retained"], after["retained"]),
        new=Pair(before["new"], after["new"]),
        approved=None if approved is None else Pair(approved, after["protected"]),
        margin=protection.margin if isinstance(protection, Statistical) else 0.0,
        retained_margin=plan.request.retained_margin,
        trained=trained,
        exact=exact,
        seed=plan.request.seed,
    )


def gate_event(verdict: GateResult, figures: JobEvaluator, *, quoting: bool = True) -> GateEvaluated:
    """Return the event of a gate result, with its comparisons.

    With *quoting*, it contains the first texts that are answered worse. Events are stored with the job.
    """
    shown = verdict.negative_flips[:FLIPS_SHOWN] if quoting else ()
    return GateEvaluated(
        verdict=verdict.verdict,
        reason=f"{verdict.reason}.",
        comparisons=tuple(
            Compared(
                against=comparison.against,
                before=comparison.before,
                after=comparison.after,
                lower_bound=comparison.bounds.lower,
                upper_bound=comparison.bounds.upper,
                examples=comparison.examples,
                gained=comparison.gained,
                lost=comparison.lost,
                needed_examples=comparison.needed_examples,
                calibration_before=comparison.calibration[0],
                calibration_after=comparison.calibration[1],
            )
            for comparison in verdict.comparisons
        ),
        negative_flips=tuple(figures.protected_text(index) for index in shown),
    )

"""The training of a job: cache what stays, grow the head, climb the stages under guard."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from twofold_checkpoint.protocol.events import Event, NoteAdded, PhaseStarted

from twofold_trainer import recipe
from twofold_trainer.evaluation.gate import Verdict
from twofold_trainer.modeling.head_growth import class_means, clear_head, grow_head
from twofold_trainer.modeling.model import restore, snapshot
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.logit_offset import balance
from twofold_trainer.training.snapshots import NOWHERE, ResumeSnapshots
from twofold_trainer.training.stage_setup import Course
from twofold_trainer.training.stages import StagesResult, climb

Gate = Callable[[], Verdict]
"""Judges the model as it stands."""


def train(
    plan: Plan, stop: StopSignal, gate: Gate, snapshots: ResumeSnapshots = NOWHERE
) -> Generator[Event, None, StagesResult]:
    """Cache what the frozen backbone sees, grow the adapted head, and climb the stages.

    All but the stages is done again by a trainer that goes on where another one died: it comes out the same.
    """
    yield PhaseStarted(phase="cache")
    course = Course(plan, stop)
    course.fill()
    if plan.added:
        grow(plan, course)
    climbed = yield from _climb(plan, plan.stages, course, stop, snapshots=snapshots)
    if plan.job.freeze != "auto" or stop.time_is_over:
        return climbed
    return (yield from _climb_on(plan, course, climbed, stop, gate, snapshots=snapshots))


def _climb(
    plan: Plan,
    stages: tuple[Stage, ...],
    course: Course,
    stop: StopSignal,
    *,
    snapshots: ResumeSnapshots,
    first: int = 0,
) -> Generator[Event, None, StagesResult]:
    after = plan.follow_ups(stages[-1]) if stages else ()
    climbed = yield from climb(
        plan.model,
        (*stages, *after),
        plan.recipe,
        plan.pool,
        course.lesson,
        yardstick=course.yardstick,
        seed=plan.job.seed,
        stop=stop,
        first=first,
        snapshots=snapshots,
    )
    if climbed.kept and plan.kept and plan.added:
        kept = plan.kept if plan.job.head == "classifier" else 1 + 2 * plan.kept
        source = course.source(climbed.kept[-1].stage)
        lead = balance(plan.model, course.yardstick, source, kept, floor=course.floor)
        if lead:
            yield NoteAdded(
                message=f"New rows got a lead of {lead:+g} logits over the old ones, which does best on dev."
            )
    return climbed


def _climb_on(
    plan: Plan, course: Course, probed: StagesResult, stop: StopSignal, gate: Gate, *, snapshots: ResumeSnapshots
) -> Generator[Event, None, StagesResult]:
    """Go on with AUTO from the probe: a shared backbone if that can pass the gate, else blocks of the head's own."""
    model, why = plan.model, plan.why_not_shared()
    if why is None:
        before = snapshot(model, model.state_dict())
        shared = yield from _climb(plan, (plan.shared,), course, stop, snapshots=snapshots, first=1)
        if not shared.kept:
            why = shared.reason
        else:
            verdict = gate()
            if verdict.verdict == "pass":
                return StagesResult((*probed.kept, *shared.kept), "a shared backbone learned it and passed the gate")
            restore(model, before)
            why = f"with a shared backbone {verdict.reason}"
        if stop.time_is_over:
            return StagesResult(probed.kept, f"the time was over, and {why}", complete=False)
        yield NoteAdded(message=f"The shared backbone is given up: {why}.")
    if not model.can_fork:
        return StagesResult(probed.kept, f"{why}, and the backbone cannot be divided for blocks of the head's own")
    stage = plan.forked
    if model.branch is None:
        model.fork(plan.job.head, stage.blocks)
    forked = yield from _climb(plan, (stage,), course, stop, snapshots=snapshots, first=3)
    if not forked.kept and not plan.base.manifest.branch:
        model.branch, model.branch_head = None, None
    kept = (*probed.kept, *forked.kept)
    if not forked.kept:
        return StagesResult(kept, f"{why}, and {forked.reason}")
    return StagesResult(kept, f"{why}, so the {plan.job.head} head got {stage.name}")


def grow(plan: Plan, course: Course) -> None:
    """Append rows to the adapted head, begun at the means of their examples."""
    head, model = plan.job.head, plan.model
    if not plan.kept:
        clear_head(model, head)
    old, new = model.head(head).out_features, len(plan.added) * (1 if head == "classifier" else 2)
    sampled = plan.new if course.fits else plan.new[: recipe.SAMPLED]
    with torch.no_grad():
        seen = ((target, course.base_features([target.encoding])) for target in sampled)
        rows, centre = class_means(seen, head, range(old, old + new), plan.base.manifest.hidden_size)
    grow_head(model, head, rows, centre)

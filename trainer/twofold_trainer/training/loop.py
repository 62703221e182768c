"""The training loop of one stage: a generator that yields events and returns the result."""

from __future__ import annotations

import math
import random
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import torch
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.protocol.events import Event, NoteAdded, ScoreMeasured

from twofold_trainer.errors import SnapshotError
from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.modeling.model import TwofoldModel, restore, snapshot
from twofold_trainer.planning.stage import Stage
from twofold_trainer.protection.guard import decide, is_check_due
from twofold_trainer.protection.nullspace import merged_names
from twofold_trainer.recipe import Recipe
from twofold_trainer.scoring.scorer import Scorer
from twofold_trainer.scoring.scores import METRIC_OF, HeadScore
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.optimization import make_stage_trainer
from twofold_trainer.training.progress import ProgressReporter
from twofold_trainer.training.snapshots import NO_SNAPSHOTS, ResumeSnapshots
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.stage_state import Best, StageState, State, resume, to_snapshot

INTERPOLATIONS = (0.75, 0.5, 0.35, 0.25)
"""Interpolation weights of a rejected state that are tried in order until the guard accepts one."""
STAGE_FLIP_RATE = 0.1
"""Share of the answers to new texts that a stage changes. It sets the noise of a dev score: on 100 examples of Chatbot, a
stage that gained 15 points appeared to gain nothing."""


@dataclass(frozen=True, slots=True)
class DevEvaluator:
    """Measures the dev score: the mean of several scorers over the dev examples, which the gate never uses."""

    scorers: tuple[Scorer, ...]
    labels: LabelSet

    def measure(self, model: TwofoldModel, source: FeatureSource | None) -> ScoreMeasured:
        """Return the dev score of the model, or 0 if there are no dev examples."""
        scores = self._scores(model, source)
        return ScoreMeasured(
            figure="dev",
            moment="during",
            metric=METRIC_OF[self.scorers[0].head],
            value=sum(score.value for score in scores) / len(scores) if scores else 0.0,
            examples=sum(score.examples for score in scores),
        )

    def noise_margin(self, flips: float) -> float:
        """Return the standard error of the dev score when the share *flips* of the answers to new examples changes."""
        return math.sqrt(flips / max(1, len(self.scorers[0].examples))) / len(self.scorers)

    def scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[float]:
        """Return the score of each scorer that has examples."""
        return [score.value for score in self._scores(model, source)]

    def _scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[HeadScore]:
        return [score for scorer in self.scorers if (score := scorer.score(model, self.labels, source)) is not None]


@dataclass(frozen=True, slots=True)
class StageResult:
    """The result of a stage: the dev scores before and after it, and the names of the tensors that it could change.

    *undo_reason* says why the stage ended in its initial state; None if it did not.
    """

    stage: Stage
    before: float
    after: float
    names: tuple[str, ...]
    undo_reason: str | None = None


def train_stage(
    model: TwofoldModel,
    stage: Stage,
    recipe: Recipe,
    inputs: StageInputs,
    dev_evaluator: DevEvaluator,
    *,
    seed: int,
    reporter: ProgressReporter,
    stop: StopSignal,
    number: int = 0,
    snapshots: ResumeSnapshots = NO_SNAPSHOTS,
) -> Generator[Event, None, StageResult]:
    """Train one stage and leave the model in its best state that the guard accepts.

    That may be the initial state. If *snapshots* has a snapshot of stage *number*, training resumes from it.
    """
    stage_trainer = make_stage_trainer(model, stage, recipe, inputs)
    names = stage_trainer.names
    torch.manual_seed(seed)  # Dropout draws from the global generator.
    first = snapshot(model, names)
    progress: StageState | None = None
    try:
        if (saved := snapshots.find(number)) is not None:
            progress = resume(saved, stage_trainer, first)
            reporter.skip(progress.step)
            yield NoteAdded(message=f"Stage {stage.name} resumes from its snapshot after epoch {progress.epochs}.")
    except SnapshotError as error:
        yield NoteAdded(
            message=f"Ignored the snapshot of stage {stage.name}: {error}. The stage starts again.", warning=True
        )
    if progress is None:
        measured = dev_evaluator.measure(model, inputs.untrained or inputs.source)
        yield measured
        best = Best(measured.value, first, measured.value)
        progress = StageState(measured.value, best, random.Random(seed), finished=not stage.epochs(recipe))
    best, noise = progress.best, dev_evaluator.noise_margin(STAGE_FLIP_RATE)
    aborted = False
    while not progress.finished:
        for batches in inputs.pool.epoch(recipe.batch_size, progress.rng):
            stop.check()
            if stop.is_past_deadline or aborted:
                break
            progress.step += 1
            if (stepped := reporter.advance(stage.name, stage_trainer.step(batches))) is not None:
                yield stepped
            if inputs.guard is not None and is_check_due(progress.step, inputs.pool.steps(recipe.batch_size)):
                drop = inputs.guard.score_drop(inputs.source)
                action = decide(drop, inputs.guard.allowed, progress.breaches)
                yield inputs.guard.event(progress.step, drop, action)
                aborted = action == "leave"
                if action == "restore":
                    progress.breaches += 1
                    restore(model, best.state)
                    stage_trainer.halve_learning_rates()
        stop.check()
        measured = dev_evaluator.measure(model, inputs.source)
        yield measured
        best.update(measured.value, snapshot(model, names), passes=not inputs.violates_guard(), noise=noise)
        progress.epochs += 1
        done = progress.epochs >= stage.epochs(recipe)
        progress.finished = (
            done or best.epochs_without_gain >= stage.patience(recipe) or stop.is_past_deadline or aborted
        )
        yield from snapshots.save_if_due(number, partial(to_snapshot, progress, stage_trainer, first))
    _repair(model, best, first, inputs, dev_evaluator, noise=noise)
    restore(model, best.state)
    model.eval()
    names = names if inputs.constraint is None else merged_names(names)
    return StageResult(stage, progress.before, best.value, names, _undo_reason(best, first))


def _undo_reason(best: Best, first: State) -> str | None:
    if best.state is not first:
        return None
    return "did not improve the dev score" if best.rejected is None else "never passed the guard"


def _repair(
    model: TwofoldModel, best: Best, old: State, inputs: StageInputs, dev_evaluator: DevEvaluator, *, noise: float
) -> None:
    """Interpolate from the best rejected state toward the old one until the guard accepts it (WiSE-FT, arXiv:2109.01903)."""
    if best.state is not old:
        noise = 0.0  # Only a better state may replace one that the guard accepted.
    if best.rejected is None or best.rejected[0] <= best.value - noise:
        return
    for share in INTERPOLATIONS:
        between = {name: torch.lerp(old[name], tensor, share) for name, tensor in best.rejected[1].items()}
        restore(model, between)
        if not inputs.violates_guard():
            best.update(dev_evaluator.measure(model, inputs.source).value, between, passes=True, noise=noise)
            return

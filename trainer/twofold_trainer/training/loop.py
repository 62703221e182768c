"""One stage of training as a generator: it yields what happens and returns what came of it."""

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
from twofold_trainer.protection.guard import decide, looks
from twofold_trainer.protection.nullspace import moved
from twofold_trainer.recipe import INTERPOLATIONS, LEARNT_FLIPS, Recipe
from twofold_trainer.scoring.scorer import Scorer
from twofold_trainer.scoring.scores import METRIC_OF, HeadScore
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.optimization import make_learner
from twofold_trainer.training.progress import ProgressReporter
from twofold_trainer.training.snapshots import NOWHERE, ResumeSnapshots
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.stage_state import Best, StageState, State, resume, take


@dataclass(frozen=True, slots=True)
class DevEvaluator:
    """Measure what training steers by: the mean of the scores of some judges, all on examples that stop, never judge."""

    judges: tuple[Scorer, ...]
    labels: LabelSet

    def measure(self, model: TwofoldModel, source: FeatureSource | None) -> ScoreMeasured:
        """Score the model. With nothing to measure by, every state is worth the same."""
        scores = self._scores(model, source)
        return ScoreMeasured(
            figure="dev",
            moment="during",
            metric=METRIC_OF[self.judges[0].head],
            value=sum(score.value for score in scores) / len(scores) if scores else 0.0,
            examples=sum(score.examples for score in scores),
        )

    def chance(self, flips: float) -> float:
        """Return one standard error of the score of a state that answers the share *flips* of the new examples otherwise."""
        return math.sqrt(flips / max(1, len(self.judges[0].examples))) / len(self.judges)

    def scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[float]:
        """Return what each judge that has examples says."""
        return [score.value for score in self._scores(model, source)]

    def _scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[HeadScore]:
        return [score for judge in self.judges if (score := judge.score(model, self.labels, source)) is not None]


@dataclass(frozen=True, slots=True)
class StageResult:
    """Say what a stage did: the dev score that it began with, that of the state it ends in, and which tensors it could move.

    *lost* says why it ends where it began, if it does.
    """

    stage: Stage
    before: float
    after: float
    names: tuple[str, ...]
    lost: str | None = None


def train_stage(
    model: TwofoldModel,
    stage: Stage,
    recipe: Recipe,
    lesson: StageInputs,
    yardstick: DevEvaluator,
    *,
    seed: int,
    pace: ProgressReporter,
    stop: StopSignal,
    number: int = 0,
    snapshots: ResumeSnapshots = NOWHERE,
) -> Generator[Event, None, StageResult]:
    """Train one stage and leave the model in the best of the states that dev and guard let pass.

    That may be the one it began with. If there is a snapshot of the stage, by its *number*, training goes on from that.
    """
    learner = make_learner(model, stage, recipe, lesson)
    names = learner.names
    torch.manual_seed(seed)  # For dropout.
    first = snapshot(model, names)
    progress: StageState | None = None
    try:
        if (kept := snapshots.find(number)) is not None:
            progress = resume(kept, learner, first)
            pace.skip(progress.step)
            yield NoteAdded(message=f"Stage {stage.name} goes on from its snapshot, after epoch {progress.epochs}.")
    except SnapshotError as error:
        yield NoteAdded(
            message=f"The snapshot of stage {stage.name} is not used: {error}. The stage begins anew.", warning=True
        )
    if progress is None:
        measured = yardstick.measure(model, lesson.untrained or lesson.source)
        yield measured
        best = Best(measured.value, first, measured.value)
        progress = StageState(measured.value, best, random.Random(seed), over=not stage.epochs(recipe))
    best, chance = progress.best, yardstick.chance(LEARNT_FLIPS)
    left = False
    while not progress.over:
        for drawn in lesson.pool.epoch(recipe.batch_size, progress.chance):
            stop.check()
            if stop.time_is_over or left:
                break
            progress.step += 1
            if (stepped := pace.advance(stage.name, learner.learn(drawn))) is not None:
                yield stepped
            if lesson.guard is not None and looks(progress.step, lesson.pool.steps(recipe.batch_size)):
                fallen = lesson.guard.fallen(lesson.source)
                action = decide(fallen, lesson.guard.allowed, progress.breaches)
                yield lesson.guard.event(progress.step, fallen, action)
                left = action == "leave"
                if action == "restore":
                    progress.breaches += 1
                    restore(model, best.state)
                    learner.soften()
        stop.check()
        measured = yardstick.measure(model, lesson.source)
        yield measured
        best.offer(measured.value, snapshot(model, names), passes=not lesson.breached(), chance=chance)
        progress.epochs += 1
        done = progress.epochs >= stage.epochs(recipe)
        progress.over = done or best.fruitless >= stage.patience(recipe) or stop.time_is_over or left
        yield from snapshots.offer(number, partial(take, progress, learner, first))
    _repair(model, best, first, lesson, yardstick, chance=chance)
    restore(model, best.state)
    model.eval()
    names = names if lesson.constraint is None else moved(names)
    return StageResult(stage, progress.before, best.value, names, _lost(best, first))


def _lost(best: Best, first: State) -> str | None:
    if best.state is not first:
        return None
    return "did not help" if best.wild is None else "was of no use because the guard let nothing of it pass"


def _repair(
    model: TwofoldModel, best: Best, old: State, lesson: StageInputs, yardstick: DevEvaluator, *, chance: float
) -> None:
    """Go from the best state that did not pass toward the old one until it does (WiSE-FT, arXiv:2109.01903)."""
    if best.state is not old:
        chance = 0.0  # Something that passed gives way only to what is better.
    if best.wild is None or best.wild[0] <= best.value - chance:
        return
    for share in INTERPOLATIONS:
        between = {name: torch.lerp(old[name], tensor, share) for name, tensor in best.wild[1].items()}
        restore(model, between)
        if not lesson.breached():
            best.offer(yardstick.measure(model, lesson.source).value, between, passes=True, chance=chance)
            return

"""One stage of training as a generator: it yields what happens and returns what came of it."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from twofold_checkpoint.events import Event, ScoreMeasured
from twofold_checkpoint.labels import LabelSet

from twofold_trainer.batches import Step
from twofold_trainer.features import FeatureSource, without_gradients
from twofold_trainer.freezing import Group, freeze_all_but, head_names, only, trainable_groups
from twofold_trainer.guard import decide, looks
from twofold_trainer.lesson import Lesson
from twofold_trainer.metrics import METRIC_OF, HeadScore
from twofold_trainer.mixed_precision import in_mixed_precision
from twofold_trainer.model import TwofoldModel, restore, snapshot
from twofold_trainer.nullspace import Constraint, moved
from twofold_trainer.objective import Objective
from twofold_trainer.pace import Pace
from twofold_trainer.recipe import CLIP_NORM, INTERPOLATIONS, LEARNT_FLIPS, TELLING, Recipe
from twofold_trainer.scoring import Judge
from twofold_trainer.stage import Stage
from twofold_trainer.stop import Stop

State = dict[str, torch.Tensor]
"""Copies of the tensors that a stage trains, by name."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Measure what training steers by: the mean of the scores of some judges, all on examples that stop, never judge."""

    judges: tuple[Judge, ...]
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

    @property
    def chance(self) -> float:
        """How much a state may seem to lose where the new examples are too few to tell: a standard error of their share."""
        examples = len(self.judges[0].examples)
        return 0.0 if examples >= TELLING else math.sqrt(LEARNT_FLIPS / max(1, examples)) / len(self.judges)

    def scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[float]:
        """Return what each judge that has examples says."""
        return [score.value for score in self._scores(model, source)]

    def _scores(self, model: TwofoldModel, source: FeatureSource | None) -> list[HeadScore]:
        return [score for judge in self.judges if (score := judge.score(model, self.labels, source)) is not None]


@dataclass(frozen=True, slots=True)
class Trained:
    """Say what a stage did: the dev score that it began with, the best one, and which tensors it could move.

    *broken* says why nothing that the stage trained could be kept, if the guard let nothing pass.
    """

    stage: Stage
    before: float
    best: float
    names: tuple[str, ...]
    broken: str | None = None


def train_stage(
    model: TwofoldModel,
    stage: Stage,
    recipe: Recipe,
    lesson: Lesson,
    yardstick: Yardstick,
    *,
    seed: int,
    pace: Pace,
    stop: Stop,
) -> Generator[Event, None, Trained]:
    """Train one stage and leave the model in its best state on dev that the guard lets pass.

    That may be the state it began with.
    """
    learner = make_learner(model, stage, recipe, lesson)
    names = learner.names
    torch.manual_seed(seed)  # For dropout.
    chance = random.Random(seed)
    measured = yardstick.measure(model, lesson.source)
    yield measured
    before, best = (
        measured.value,
        Best(measured.value - (yardstick.chance if stage.blocks else 0.0), snapshot(model, names)),
    )
    first = best.state
    step = breaches = 0
    left = False
    for _ in range(stage.epochs(recipe)):
        for drawn in lesson.pool.epoch(recipe.batch_size, chance):
            stop.check()
            if stop.time_is_over or left:
                break
            step += 1
            if (stepped := pace.advance(stage.name, learner.learn(drawn))) is not None:
                yield stepped
            if lesson.guard is not None and looks(step, lesson.pool.steps(recipe.batch_size)):
                fallen = lesson.guard.fallen(lesson.source)
                action = decide(fallen, lesson.guard.allowed, breaches)
                yield lesson.guard.event(step, fallen, action)
                left = action == "leave"
                if action == "restore":
                    breaches += 1
                    restore(model, best.state)
                    learner.soften()
        stop.check()
        measured = yardstick.measure(model, lesson.source)
        yield measured
        best.offer(measured.value, snapshot(model, names), passes=not lesson.breached())
        if best.fruitless >= recipe.patience or stop.time_is_over or left:
            break
    _repair(model, best, first, lesson, yardstick)
    restore(model, best.state)
    model.eval()
    broken = "the guard let nothing of it pass" if best.wild is not None and best.state is first else None
    return Trained(stage, before, best.value, names if lesson.constraint is None else moved(names), broken)


@dataclass(slots=True)
class Learner:
    """Hold what takes a stage's steps."""

    model: TwofoldModel
    names: tuple[str, ...]
    """The parameters that move."""
    source: FeatureSource
    objective: Objective
    optimizer: Optimizer
    schedule: LambdaLR

    def learn(self, step: Step) -> float:
        """Take a step and return the loss before it."""
        losses = [
            self.objective(self.model, batch, self.source([target.encoding for target in batch])) for batch in step
        ]
        loss = torch.stack(losses).sum()
        if loss.requires_grad:  # A batch of which nothing is known teaches nothing.
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            self.optimizer.step()
        self.schedule.step()
        return loss.detach().item()

    def soften(self) -> None:
        """Halve all rates and hold the protected head twice as firmly, after damage was seen."""
        self.schedule.base_lrs = [rate / 2 for rate in self.schedule.base_lrs]
        held = self.objective.distillation
        if held is not None:
            self.objective = replace(self.objective, distillation=replace(held, protected=2 * held.protected))


def make_learner(model: TwofoldModel, stage: Stage, recipe: Recipe, lesson: Lesson) -> Learner:
    """Freeze all but what the stage trains, and prepare its steps."""
    groups = choose_groups(model, stage, recipe, lesson.constraint)
    names = tuple(name for group in groups for name in group.names)
    freeze_all_but(model, names)
    optimizer = make_optimizer(model, groups, recipe, stage)
    source = lesson.source
    if not stage.blocks:
        source = without_gradients(source)
    elif recipe.mixed_precision:
        source = in_mixed_precision(source)
    return Learner(
        model,
        names,
        source,
        lesson.objective,
        optimizer,
        make_schedule(optimizer, stage.steps(recipe, lesson.pool), recipe.warmup_ratio),
    )


@dataclass(slots=True)
class Best:
    """Keep the best state that the guard lets pass, and the best one that it does not."""

    value: float
    state: State
    wild: tuple[float, State] | None = None
    highest: float = -math.inf
    fruitless: int = 0
    """Measurements since the highest one. A stage first falls while its rates rise: what it began with does not count."""

    def offer(self, value: float, state: State, *, passes: bool) -> None:
        """Take a state if it is the best of its kind."""
        self.fruitless = 0 if value > self.highest else self.fruitless + 1
        self.highest = max(self.highest, value)
        if passes and value > self.value:
            self.value, self.state = value, state
        if not passes and (self.wild is None or value > self.wild[0]):
            self.wild = value, state


def _repair(model: TwofoldModel, best: Best, old: State, lesson: Lesson, yardstick: Yardstick) -> None:
    """Go from the best state that did not pass toward the old one until it does (WiSE-FT, arXiv:2109.01903)."""
    if best.wild is None or best.wild[0] <= best.value:
        return
    for share in INTERPOLATIONS:
        between = {name: torch.lerp(old[name], tensor, share) for name, tensor in best.wild[1].items()}
        restore(model, between)
        if not lesson.breached():
            best.offer(yardstick.measure(model, lesson.source).value, between, passes=True)
            return


def choose_groups(model: TwofoldModel, stage: Stage, recipe: Recipe, constraint: Constraint | None) -> list[Group]:
    """Choose what a stage trains: of its blocks, where a constraint holds them, only that constraint's coefficients."""
    groups = trainable_groups(model, stage.heads, stage.blocks, norms=recipe.train_norms)
    if constraint is None:
        return groups
    return only(groups, {*constraint.names, *head_names(model, stage.heads)})


def make_optimizer(model: TwofoldModel, groups: Sequence[Group], recipe: Recipe, stage: Stage) -> Optimizer:
    """Make AdamW with a rate for each depth; what has one dimension (biases, norms) does not decay."""
    parameters = dict(model.named_parameters())
    settings = []
    top = recipe.fork_learning_rate if stage.forked else recipe.backbone_learning_rate
    for group in groups:
        if group.depth is None:
            rate = recipe.head_learning_rate if stage.blocks else recipe.probe_learning_rate
        else:
            rate = top * recipe.layer_decay**group.depth
        for decays in (True, False):
            chosen = [parameters[name] for name in group.names if (parameters[name].ndim > 1) == decays]
            if chosen:
                decay = recipe.weight_decay if decays else 0.0
                settings.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return AdamW(settings, fused=True)  # One kernel over all tensors: four times as fast on a CPU.


def make_schedule(optimizer: Optimizer, steps: int, warmup_ratio: float) -> LambdaLR:
    """Let the rates rise from zero over the warm-up, then fall to zero at the last step."""
    warmup = max(1, round(warmup_ratio * steps))

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))

    return LambdaLR(optimizer, factor)

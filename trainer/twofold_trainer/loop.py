"""One stage of training as a generator: it yields what happens and returns what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from twofold_checkpoint.events import Event, ScoreMeasured, Stepped
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName

from twofold_trainer.batches import Pool, batches
from twofold_trainer.features import FeatureCache, compute_features
from twofold_trainer.freezing import Group, freeze_all_but, trainable_groups
from twofold_trainer.losses import total_loss
from twofold_trainer.metrics import METRIC_OF
from twofold_trainer.model import TwofoldModel, restore, snapshot
from twofold_trainer.recipe import CLIP_NORM, REPORT_SECONDS, Recipe
from twofold_trainer.scoring import Judge
from twofold_trainer.stop import Stop
from twofold_trainer.targets import Target


@dataclass(frozen=True, slots=True)
class Stage:
    """Say what a stage trains: these heads, and the top *blocks* blocks of *of*."""

    heads: tuple[HeadName, ...]
    blocks: int
    of: int

    @property
    def name(self) -> str:
        """The stage's name for people."""
        if not self.blocks:
            return "heads"
        if self.blocks >= self.of:
            return "all blocks"
        return f"top {self.blocks} blocks" if self.blocks > 1 else "top block"

    def epochs(self, recipe: Recipe) -> int:
        """How many epochs it has at most."""
        if not self.blocks:
            return recipe.probe_epochs
        return recipe.epochs if self.blocks >= recipe.unfrozen_blocks else recipe.middle_epochs

    def steps(self, recipe: Recipe, pool: Pool) -> int:
        """How many steps it has if it is not ended early."""
        return self.epochs(recipe) * -(-pool.epoch_size // recipe.batch_size)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Measure what training steers by: the mean of the scores of some judges, all on examples that stop, never judge."""

    judges: tuple[Judge, ...]
    labels: LabelSet

    def measure(self, model: TwofoldModel, cache: FeatureCache | None) -> ScoreMeasured:
        """Score the model. With nothing to measure by, every state is worth the same."""
        scores = [score for judge in self.judges if (score := judge.score(model, self.labels, cache)) is not None]
        return ScoreMeasured(
            figure="dev",
            moment="during",
            metric=METRIC_OF[self.judges[0].head],
            value=sum(score.value for score in scores) / len(scores) if scores else 0.0,
            examples=sum(score.examples for score in scores),
        )


@dataclass(slots=True)
class Pace:
    """Count steps over all stages, and guess how long the rest takes."""

    total: int
    step: int = 0
    _losses: list[float] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    def advance(self, stage: str, loss: float) -> Stepped | None:
        """Count a step, and report if it is time."""
        self.step += 1
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._reported < REPORT_SECONDS:
            return None
        self._reported = now
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        remaining = (now - self._begun) / self.step * max(0, self.total - self.step)
        return Stepped(stage=stage, step=self.step, total_steps=self.total, loss=mean, remaining_seconds=remaining)


@dataclass(frozen=True, slots=True)
class Trained:
    """Say what a stage did: the dev score that it began with, the best one, and which tensors it could move."""

    stage: Stage
    before: float
    best: float
    names: tuple[str, ...]


def train_stage(
    model: TwofoldModel,
    stage: Stage,
    recipe: Recipe,
    pool: Pool,
    yardstick: Yardstick,
    *,
    pad_id: int,
    seed: int,
    pace: Pace,
    stop: Stop,
    cache: FeatureCache | None = None,
) -> Generator[Event, None, Trained]:
    """Train one stage and leave the model in its best state on dev, which may be the one that it began with.

    *cache* holds the features of every text of the pool and the yardstick, for a stage that moves no block.
    """
    groups = trainable_groups(model, stage.heads, stage.blocks)
    names = tuple(name for group in groups for name in group.names)
    freeze_all_but(model, names)
    torch.manual_seed(seed)  # For dropout.
    chance = random.Random(seed)
    optimizer = make_optimizer(model, groups, recipe, moves_blocks=stage.blocks > 0)
    schedule = make_schedule(optimizer, stage.steps(recipe, pool), recipe.warmup_ratio)

    measured = yardstick.measure(model, cache)
    yield measured
    before = best = measured.value
    best_state = snapshot(model, names)
    fruitless = 0
    for _ in range(stage.epochs(recipe)):
        for batch in batches(pool.epoch(chance), recipe.batch_size, chance):
            stop.check()
            if stop.time_is_over:
                break
            loss = _loss(model, batch, stage, recipe, pad_id=pad_id, cache=cache)
            if loss.requires_grad:  # A batch of which nothing is known teaches nothing.
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
                torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
                optimizer.step()
            schedule.step()
            if (stepped := pace.advance(stage.name, loss.detach().item())) is not None:
                yield stepped
        stop.check()
        measured = yardstick.measure(model, cache)
        yield measured
        if measured.value > best:
            best, best_state, fruitless = measured.value, snapshot(model, names), 0
        else:
            fruitless += 1
        if fruitless >= recipe.patience or stop.time_is_over:
            break
    restore(model, best_state)
    model.eval()
    return Trained(stage, before, best, names)


def _loss(
    model: TwofoldModel,
    batch: Sequence[Target],
    stage: Stage,
    recipe: Recipe,
    *,
    pad_id: int,
    cache: FeatureCache | None,
) -> Tensor:
    """Return the loss of a batch. A frozen head's loss counts while the backbone under it moves."""
    encodings = [target.encoding for target in batch]
    if cache is not None:
        features = cache.get(encodings)
    else:
        with torch.set_grad_enabled(stage.blocks > 0):
            features = compute_features(model, encodings, pad_id)
    labels = torch.tensor([target.label for target in batch])
    allowed = torch.from_numpy(np.concatenate([target.allowed for target in batch]))
    if not stage.blocks and "classifier" not in stage.heads:
        labels = torch.full_like(labels, -1)
    if not stage.blocks and "ner" not in stage.heads:
        allowed = torch.ones_like(allowed)
    logits = model.classifier(features.pooled), model.ner(features.tokens)
    return total_loss(logits[0], labels, logits[1], allowed, ner_weight=recipe.ner_weight)


def make_optimizer(model: TwofoldModel, groups: Sequence[Group], recipe: Recipe, *, moves_blocks: bool) -> Optimizer:
    """Make AdamW with a rate for each depth; what has one dimension (biases, norms) does not decay."""
    parameters = dict(model.named_parameters())
    settings = []
    for group in groups:
        if group.depth is None:
            rate = recipe.head_learning_rate if moves_blocks else recipe.probe_learning_rate
        else:
            rate = recipe.backbone_learning_rate * recipe.layer_decay**group.depth
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

"""Optimisation of a stage: its trainable parameters, optimizer and learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from twofold_trainer.datasets.batching import Step
from twofold_trainer.modeling.features import FeatureSource, without_gradients
from twofold_trainer.modeling.freezing import Group, freeze_all_but, head_names, only, trainable_groups
from twofold_trainer.modeling.mixed_precision import in_mixed_precision, keeping_casts
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.planning.stage import Stage
from twofold_trainer.protection.nullspace import NullSpaceConstraint
from twofold_trainer.training.objective import Objective
from twofold_trainer.training.stage_inputs import StageInputs

CLIP_NORM = 1.0
"""Largest gradient norm of a step."""


@dataclass(slots=True)
class StageTrainer:
    """Takes the optimisation steps of a stage."""

    model: TwofoldModel
    names: tuple[str, ...]
    """Names of the trainable parameters."""
    source: FeatureSource
    objective: Objective
    optimizer: Optimizer
    schedule: LambdaLR

    def step(self, batches: Step) -> float:
        """Take one optimizer step on the summed losses of the batches, and return the loss before it."""
        with keeping_casts():
            losses = [
                self.objective(self.model, batch, self.source([target.encoding for target in batch]))
                for batch in batches
            ]
        loss = torch.stack(losses).sum()
        if loss.requires_grad:  # A batch without any annotation has a constant loss.
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            self.optimizer.step()
        self.schedule.step()
        return loss.detach().item()

    def halve_learning_rates(self) -> None:
        """Halve all learning rates and double the protected head's distillation weight, after the guard saw a drop."""
        self.schedule.base_lrs = [rate / 2 for rate in self.schedule.base_lrs]
        weights = self.objective.distillation
        if weights is not None:
            self.objective = replace(self.objective, distillation=replace(weights, protected=2 * weights.protected))


def make_stage_trainer(model: TwofoldModel, stage: Stage, inputs: StageInputs) -> StageTrainer:
    """Freeze everything that the stage does not train, and make its optimizer and schedule."""
    groups, recipe = choose_groups(model, stage, inputs.constraint), stage.recipe
    names = tuple(name for group in groups for name in group.names)
    freeze_all_but(model, names)
    optimizer = make_optimizer(model, groups, stage)
    source = in_mixed_precision(inputs.source) if recipe.mixed_precision else inputs.source
    if not stage.blocks:
        source = without_gradients(source)
    return StageTrainer(
        model,
        names,
        source,
        inputs.objective,
        optimizer,
        make_schedule(optimizer, stage.steps, recipe.warmup_ratio),
    )


def choose_groups(model: TwofoldModel, stage: Stage, constraint: NullSpaceConstraint | None) -> list[Group]:
    """Return the parameter groups that a stage trains; under a constraint, only its coefficients and the heads."""
    groups = trainable_groups(model, stage.heads, stage.blocks, norms=stage.recipe.train_norms)
    if constraint is None:
        return groups
    return only(groups, {*constraint.names, *head_names(model, stage.heads)})


def make_optimizer(model: TwofoldModel, groups: Sequence[Group], stage: Stage) -> Optimizer:
    """Make AdamW with a learning rate per depth, without weight decay for one-dimensional tensors (biases, norms)."""
    parameters = dict(model.named_parameters())
    settings = []
    for group in groups:
        rate = stage.head_learning_rate
        if group.depth is not None:
            rate = stage.block_learning_rate * stage.recipe.layer_decay**group.depth
        for decays in (True, False):
            chosen = [parameters[name] for name in group.names if (parameters[name].ndim > 1) == decays]
            if chosen:
                decay = stage.recipe.weight_decay if decays else 0.0
                settings.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return AdamW(settings, fused=True)  # One fused kernel over all tensors is four times as fast on a CPU.


def make_schedule(optimizer: Optimizer, steps: int, warmup_ratio: float) -> LambdaLR:
    """Make a schedule with linear warm-up, then linear decay to zero at the last step."""
    warmup = max(1, round(warmup_ratio * steps))

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))

    return LambdaLR(optimizer, factor)

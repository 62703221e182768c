"""Plain fine-tuning, with hooks for a classic method: an added term of the loss, or an edit of the gradients."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS, HeadName, other_head
from twofold_trainer.datasets.batching import batches
from twofold_trainer.datasets.splits import Parts, add_to_memory, drop_annotations, types_of
from twofold_trainer.datasets.targets import Target, make_targets
from twofold_trainer.modeling.features import FeatureCache, Features, FeatureSource, live
from twofold_trainer.modeling.head_growth import class_means, clear_head, grow_head
from twofold_trainer.modeling.mixed_precision import has_bf16, in_mixed_precision
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.training.losses import label_nll, partial_label_nll

from benchmarks.adaptation.hyperparameters import Hyperparameters
from benchmarks.adaptation.method_interface import Learner, Task

FEATURE_BATCH_SIZE = 32
"""Texts per batch when only features are computed."""

Batch = Sequence[Target]


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """Hold one training: the model, a copy of it from before, and the data.

    *frozen_features* computes the features of the old backbone, once per text. *memory_targets* have no labels for the
    adapted head if its names were replaced.
    """

    model: TwofoldModel
    old: TwofoldModel
    head: HeadName
    retained_heads: tuple[HeadName, ...]
    """The heads that keep their old rows."""
    new: tuple[Target, ...]
    memory_targets: tuple[Target, ...]
    frozen_features: FeatureSource
    pad_id: int
    hyperparameters: Hyperparameters
    rng: random.Random

    def loss(self, batch: Batch, features: Features, heads: Sequence[HeadName] = HEADS) -> Tensor:
        """Return the loss of a batch; a head without labels in the batch adds zero."""
        total = features.pooled.sum() * 0.0
        if "classifier" in heads:
            labels = torch.tensor([target.label for target in batch])
            total = total + label_nll(self.model.classifier(features.pooled), labels)
        if "ner" in heads:
            allowed = torch.from_numpy(np.concatenate([target.allowed for target in batch]))
            total = total + self.hyperparameters.ner_weight * partial_label_nll(
                self.model.ner(features.tokens), allowed
            )
        return total

    def memory_batches(self) -> Iterator[list[Target]]:
        """Yield batches of the memory endlessly."""
        while True:
            yield from batches(self.memory_targets, self.hyperparameters.batch_size, self.rng)


LossTerm = Callable[[Batch, Features, FeatureSource], Tensor]
"""Returns an additional loss, from a batch of new texts, their features, and a source of further features."""
GradientEdit = Callable[[FeatureSource], None]
"""Edits the gradients after the backward pass and before clipping."""


class MethodHooks(NamedTuple):
    """What a method adds to plain fine-tuning."""

    loss_term: LossTerm | None = None
    edit_gradients: GradientEdit | None = None


HookFactory = Callable[[TrainingContext], MethodHooks]


def fine_tune(learner: Learner, task: Task, hook_factory: HookFactory, *, frozen: bool = False) -> Learner:
    """Train the adapted head over the frozen backbone, then all tensors, and return the learner with its new memory.

    The model is changed in place. With *frozen* the protected head is not trained. New names are appended as rows that
    start at the mean features of their examples, or replace the old rows.
    """
    torch.manual_seed(task.seed)
    context, labels = prepare(learner, task)
    model, hyperparameters = context.model, task.hyperparameters
    hooks = hook_factory(context)
    heads = (task.head,) if frozen else HEADS
    _train(
        context,
        hooks,
        _head_group(model, task.head, hyperparameters.probe_learning_rate),
        context.frozen_features,
        hyperparameters.probe_epochs,
    )
    _train(
        context,
        hooks,
        parameter_groups(model, heads, hyperparameters),
        live(model, learner.pad_id),
        hyperparameters.epochs,
    )
    memory = drop_annotations(learner.memory, task.head) if task.replaces else learner.memory
    parts = Parts(task.train, task.dev, ())
    return Learner(model, learner.encoder, labels, add_to_memory(memory, parts, seed=task.seed))


def prepare(learner: Learner, task: Task) -> tuple[TrainingContext, LabelSet]:
    """Grow the adapted head and make the training targets."""
    model, head = learner.model, task.head
    old = copy.deepcopy(model).eval()
    source, cache = live(old, learner.pad_id), FeatureCache()

    def frozen_features(encodings: Sequence[Encoding]) -> Features:
        for _ in cache.fill(source, encodings, rows=FEATURE_BATCH_SIZE):
            pass
        return cache.get(encodings)

    old_labels = learner.labels
    if task.replaces:
        old_labels = msgspec.structs.replace(old_labels, **{"labels" if head == "classifier" else "entity_types": ()})
        clear_head(model, head)
    if head == "classifier":
        labels = old_labels.append(labels=(example.label for example in task.train if example.label is not None))
        rows = range(len(old_labels.labels), len(labels.labels))
    else:
        labels = old_labels.append(entity_types=types_of(task.train))
        rows = range(len(old_labels.tags), len(labels.tags))
    new = tuple(make_targets(task.train, learner.encoder, labels, heads=(head,)))
    memory = drop_annotations(learner.memory, head) if task.replaces else learner.memory
    with torch.no_grad():
        features = ((target, frozen_features([target.encoding])) for target in new)
        grow_head(model, head, *class_means(features, head, rows, model.config.hidden_size))
    context = TrainingContext(
        model=model,
        old=old,
        head=head,
        retained_heads=(other_head(head),) if task.replaces else HEADS,
        new=new,
        memory_targets=tuple(make_targets(memory.rehearsal, learner.encoder, labels)),
        frozen_features=frozen_features,
        pad_id=learner.pad_id,
        hyperparameters=task.hyperparameters,
        rng=random.Random(task.seed),
    )
    return context, labels


Groups = list[dict[str, Any]]
"""Parameter groups of an optimizer."""


def _train(context: TrainingContext, hooks: MethodHooks, groups: Groups, source: FeatureSource, epochs: int) -> None:
    """Train the parameters of the groups on the new texts."""
    model, hyperparameters = context.model, context.hyperparameters
    parameters = [parameter for group in groups for parameter in group["params"]]
    model.requires_grad_(requires_grad=False)
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    model.train(source is not context.frozen_features)
    if source is not context.frozen_features and hyperparameters.mixed_precision and has_bf16():
        source = in_mixed_precision(source)
    optimizer = AdamW(groups, fused=True)
    steps = epochs * -(-len(context.new) // hyperparameters.batch_size)
    schedule = LambdaLR(optimizer, lambda step: warmup_then_decay(step, steps, hyperparameters.warmup_ratio))
    for _ in range(epochs):
        for batch in batches(context.new, hyperparameters.batch_size, context.rng):
            features = source([target.encoding for target in batch])
            loss = context.loss(batch, features, (context.head,))
            if hooks.loss_term is not None:
                loss = loss + hooks.loss_term(batch, features, source)
            optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:  # A batch without labels has no gradient.
                loss.backward()
                if hooks.edit_gradients is not None:
                    hooks.edit_gradients(source)
                clip_grad_norm_(parameters, hyperparameters.max_gradient_norm)
                optimizer.step()
            schedule.step()
    model.eval()


def warmup_then_decay(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the learning rates at a step: linear warm-up over a fraction of the steps, then linear decay to zero."""
    warm = max(1, round(warmup * steps))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


def _head_group(model: TwofoldModel, head: HeadName, rate: float) -> Groups:
    return [{"params": list(model.head(head).parameters()), "lr": rate, "weight_decay": 0.0}]


def parameter_groups(model: TwofoldModel, heads: Sequence[HeadName], hyperparameters: Hyperparameters) -> Groups:
    """Group the backbone's tensors by depth, and the heads. One-dimensional tensors have no weight decay.

    Tensors outside the blocks, such as the embeddings, have a lower learning rate than the bottom block.
    """
    blocks = model.blocks()
    depth_of = {
        id(parameter): depth for depth, block in enumerate(reversed(blocks)) for parameter in block.parameters()
    }
    tensors = [
        (parameter, hyperparameters.head_learning_rate) for head in heads for parameter in model.head(head).parameters()
    ]
    tensors += [
        (
            parameter,
            hyperparameters.backbone_learning_rate
            * hyperparameters.layer_decay ** depth_of.get(id(parameter), len(blocks)),
        )
        for parameter in model.backbone.parameters()
    ]
    grouped: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter, rate in tensors:
        grouped.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": hyperparameters.weight_decay if decays else 0.0}
        for (rate, decays), params in grouped.items()
    ]

"""Plain fine-tuning with room for what a classic method adds: a term of the loss, or a change of the gradients."""

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
from twofold_trainer.datasets.splits import Parts, forget, remember, types_of
from twofold_trainer.datasets.targets import Target, make_targets
from twofold_trainer.modeling.features import FeatureCache, Features, FeatureSource, live
from twofold_trainer.modeling.head_growth import class_means, clear_head, grow_head
from twofold_trainer.modeling.mixed_precision import has_bf16, in_mixed_precision
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.training.losses import label_nll, partial_label_nll

from benchmarks.adaptation.hyperparameters import Rates
from benchmarks.adaptation.method_interface import Student, Task

ROWS = 32
"""Texts in a batch of which only the features are wanted."""

Batch = Sequence[Target]


@dataclass(frozen=True, slots=True)
class Course:
    """Hold one training: the model that learns, what it learns from, and the model as it was.

    *frozen* gives the features that the old backbone computes, each text once. *remembered* says nothing to the adapted
    head where its names were replaced.
    """

    model: TwofoldModel
    old: TwofoldModel
    head: HeadName
    kept: tuple[HeadName, ...]
    """The heads whose old rows still mean what they meant."""
    new: tuple[Target, ...]
    remembered: tuple[Target, ...]
    frozen: FeatureSource
    pad_id: int
    rates: Rates
    chance: random.Random

    def loss(self, batch: Batch, features: Features, heads: Sequence[HeadName] = HEADS) -> Tensor:
        """Return the loss of the labels of a batch; a head of which the batch says nothing adds zero."""
        total = features.pooled.sum() * 0.0
        if "classifier" in heads:
            labels = torch.tensor([target.label for target in batch])
            total = total + label_nll(self.model.classifier(features.pooled), labels)
        if "ner" in heads:
            allowed = torch.from_numpy(np.concatenate([target.allowed for target in batch]))
            total = total + self.rates.ner_weight * partial_label_nll(self.model.ner(features.tokens), allowed)
        return total

    def rehearsals(self) -> Iterator[list[Target]]:
        """Yield batches of the memory without end."""
        while True:
            yield from batches(self.remembered, self.rates.batch_size, self.chance)


Term = Callable[[Batch, Features, FeatureSource], Tensor]
"""A term of the loss beside the new labels', from a batch of new texts, their features, and a source of more."""
Edit = Callable[[FeatureSource], None]
"""Changes the gradients after the backward pass, before they are clipped."""


class Aid(NamedTuple):
    """What a method adds to plain fine-tuning."""

    term: Term | None = None
    edit: Edit | None = None


Method = Callable[[Course], Aid]


def fine_tune(student: Student, task: Task, method: Method, *, frozen: bool = False) -> Student:
    """Probe the adapted head over the frozen backbone, then train everything, and return the student with its memory.

    The model is changed in place. With *frozen* the protected head's tensors stay. New names are appended as rows that
    begin at the means of their examples, or take the place of the old rows.
    """
    torch.manual_seed(task.seed)
    course, labels = start(student, task)
    model, rates = course.model, task.rates
    aid = method(course)
    heads = (task.head,) if frozen else HEADS
    _train(course, aid, _head_group(model, task.head, rates.probe), course.frozen, rates.probe_epochs)
    _train(course, aid, all_groups(model, heads, rates), live(model, student.pad_id), rates.epochs)
    memory = forget(student.memory, task.head) if task.replaces else student.memory
    parts = Parts(task.train, task.dev, ())
    return Student(model, student.encoder, labels, remember(memory, parts, seed=task.seed))


def start(student: Student, task: Task) -> tuple[Course, LabelSet]:
    """Grow the adapted head and look up what the examples teach."""
    model, head = student.model, task.head
    old = copy.deepcopy(model).eval()
    source, cache = live(old, student.pad_id), FeatureCache()

    def frozen(encodings: Sequence[Encoding]) -> Features:
        for _ in cache.fill(source, encodings, rows=ROWS):
            pass
        return cache.get(encodings)

    before = student.labels
    if task.replaces:
        before = msgspec.structs.replace(before, **{"labels" if head == "classifier" else "entity_types": ()})
        clear_head(model, head)
    if head == "classifier":
        labels = before.append(labels=(example.label for example in task.train if example.label is not None))
        rows = range(len(before.labels), len(labels.labels))
    else:
        labels = before.append(entity_types=types_of(task.train))
        rows = range(len(before.tags), len(labels.tags))
    new = tuple(make_targets(task.train, student.encoder, labels, teaches=(head,)))
    memory = forget(student.memory, head) if task.replaces else student.memory
    with torch.no_grad():
        seen = ((target, frozen([target.encoding])) for target in new)
        grow_head(model, head, *class_means(seen, head, rows, model.config.hidden_size))
    course = Course(
        model=model,
        old=old,
        head=head,
        kept=(other_head(head),) if task.replaces else HEADS,
        new=new,
        remembered=tuple(make_targets(memory.rehearsal, student.encoder, labels)),
        frozen=frozen,
        pad_id=student.pad_id,
        rates=task.rates,
        chance=random.Random(task.seed),
    )
    return course, labels


Groups = list[dict[str, Any]]
"""Parameter groups of an optimizer."""


def _train(course: Course, aid: Aid, groups: Groups, source: FeatureSource, epochs: int) -> None:
    """Train the groups' parameters on the new texts, and let no others have gradients."""
    model, rates = course.model, course.rates
    parameters = [parameter for group in groups for parameter in group["params"]]
    model.requires_grad_(requires_grad=False)
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=True)
    model.train(source is not course.frozen)
    if source is not course.frozen and rates.mixed_precision and has_bf16():
        source = in_mixed_precision(source)
    optimizer = AdamW(groups, fused=True)
    steps = epochs * -(-len(course.new) // rates.batch_size)
    schedule = LambdaLR(optimizer, lambda step: warm_and_fall(step, steps, rates.warmup))
    for _ in range(epochs):
        for batch in batches(course.new, rates.batch_size, course.chance):
            features = source([target.encoding for target in batch])
            loss = course.loss(batch, features, (course.head,))
            if aid.term is not None:
                loss = loss + aid.term(batch, features, source)
            optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:  # A batch of which nothing is known teaches nothing.
                loss.backward()
                if aid.edit is not None:
                    aid.edit(source)
                clip_grad_norm_(parameters, rates.clip)
                optimizer.step()
            schedule.step()
    model.eval()


def warm_and_fall(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the rates at a step: up over the share *warmup* of all, then down to zero."""
    warm = max(1, round(warmup * steps))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


def _head_group(model: TwofoldModel, head: HeadName, rate: float) -> Groups:
    own = model.head(head)
    return [{"params": [own.weight, own.bias], "lr": rate, "weight_decay": 0.0}]


def all_groups(model: TwofoldModel, heads: Sequence[HeadName], rates: Rates) -> Groups:
    """Group every tensor of the backbone by depth, and the heads; what has one dimension does not decay.

    What stands outside the blocks, such as the embeddings, moves at the rate below the bottom block's.
    """
    blocks = model.blocks()
    depth_of = {
        id(parameter): depth for depth, block in enumerate(reversed(blocks)) for parameter in block.parameters()
    }
    tensors = [(parameter, rates.head) for head in heads for parameter in model.head(head).parameters()]
    tensors += [
        (parameter, rates.backbone * rates.layer_decay ** depth_of.get(id(parameter), len(blocks)))
        for parameter in model.backbone.parameters()
    ]
    gathered: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter, rate in tensors:
        gathered.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": rates.weight_decay if decays else 0.0}
        for (rate, decays), params in gathered.items()
    ]

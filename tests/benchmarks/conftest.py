"""A learner trained on a small task, and new tasks for it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_models
from support.benchmark_runs import TINY_HYPERPARAMETERS
from torch.optim import AdamW
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.examples import Example
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.memory import Memory
from twofold_trainer.datasets.batching import batches
from twofold_trainer.datasets.splits import types_of, with_annotated_types
from twofold_trainer.datasets.targets import make_targets
from twofold_trainer.modeling.features import compute_features
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.training.losses import label_nll, partial_label_nll

from benchmarks.adaptation.hyperparameters import Hyperparameters
from benchmarks.adaptation.method_interface import Learner, Task


def with_types(examples: Sequence[Example]) -> list[Example]:
    """Set the annotated types, as the scenarios' reader does."""
    return with_annotated_types(examples, types_of(examples))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread is fastest for small tensors, and deterministic."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A learner trained on the base task from random weights, with learning rates too high for a pretrained backbone."""
    backbone = tiny_models.make_backbone("bert", tmp_path_factory.mktemp("backbone"))
    labels = LabelSet(labels=tuple(sorted(tiny_models.TEMPLATES)), entity_types=("artist", "city", "date"))
    torch.manual_seed(0)
    model, encoder = (
        TwofoldModel(backbone.module, labels, backbone.pooling),
        Encoder(backbone.tokenizer, backbone.settings),
    )
    examples = with_types(tiny_models.examples(160))
    targets, rng = make_targets(examples, encoder, labels), random.Random(0)
    optimizer = AdamW(model.parameters(), lr=3e-3)
    model.eval()  # Without dropout a tiny model learns in few steps.
    for _ in range(8):
        for batch in batches(targets, 16, rng):
            features = compute_features(model, [target.encoding for target in batch], backbone.settings.pad_id)
            loss = label_nll(model.classifier(features.pooled), torch.tensor([target.label for target in batch]))
            allowed = torch.from_numpy(np.concatenate([target.allowed for target in batch]))
            optimizer.zero_grad()
            (loss + partial_label_nll(model.ner(features.tokens), allowed)).backward()
            optimizer.step()
    return Learner(model, encoder, labels, Memory(rehearsal=tuple(examples)))


@pytest.fixture
def base(_trained: Learner) -> Callable[[], Learner]:
    """Return a function that copies the learner trained on the base task."""
    return lambda: replace(_trained, model=copy.deepcopy(_trained.model))


@pytest.fixture
def make_task(tmp_path: Path) -> Callable:
    """Return a task with new examples."""

    def make(head: str = "ner", **settings):
        make_examples = tiny_models.restaurant if head == "ner" else tiny_models.intents
        hyperparameters = settings.pop("hyperparameters", {})
        return Task(
            **{
                "head": head,
                "replaces": False,
                "train": tuple(with_types(make_examples(48))),
                "dev": (),
                "work": tmp_path,
                "hyperparameters": Hyperparameters(**{**TINY_HYPERPARAMETERS, **hyperparameters}),
                **settings,
            }
        )

    return make

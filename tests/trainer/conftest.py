"""Fixtures of the trainer's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny_models
from support.exported_models import Exported, make_exported
from support.shared_once import once
from twofold_checkpoint.examples import write_examples
from twofold_checkpoint.protocol.job import TrainerJob, TrainingRequest
from twofold_checkpoint.store import Store
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stages import StagePlanner

MakeJob = Callable[..., TrainerJob]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread is fastest for small tensors, and deterministic."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose current checkpoint has learned the base task. Tests copy it."""
    return once(tmp_path_factory, "base", tiny_models.make_base_store)


@pytest.fixture
def store(base_store: Path, tmp_path: Path) -> Store:
    """A copy of the base store."""
    shutil.copytree(base_store, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def make_job(store: Store, tmp_path: Path) -> MakeJob:
    """A function that makes jobs for the base store; examples may be given instead of files."""
    return job_maker(store, tmp_path)


def job_maker(store: Store, directory: Path) -> MakeJob:
    """Return a function that makes jobs for a store, with their examples in a directory."""

    def make(head: str = "ner", **settings) -> TrainerJob:
        of = tiny_models.restaurant if head == "ner" else tiny_models.intents
        dev = settings.pop("dev", None if "train" in settings else of(80, seed=7))
        train = settings.pop("train", of(80))
        write_examples(directory / "train.jsonl", train)
        if dev is not None:
            write_examples(directory / "dev.jsonl", dev)
        request = {name: settings.pop(name) for name in TrainingRequest.__struct_fields__ if name in settings}
        return TrainerJob(
            **{
                "id": "job",
                "store": str(store.root),
                "base": store.get("current").id,
                "train": str(directory / "train.jsonl"),
                "dev": None if dev is None else str(directory / "dev.jsonl"),
                "request": TrainingRequest(head=head, **request),
                **settings,
            }
        )

    return make


def planner_of(plan: Plan) -> StagePlanner:
    """Return the planner of a plan's stages."""
    manifest, blocks = plan.base.manifest, len(plan.model.blocks())
    return StagePlanner(
        plan.request, plan.recipe, plan.new, plan.rehearsed, blocks, manifest.hidden_size, manifest.branch
    )


@pytest.fixture(scope="module", params=tiny_models.ARCHITECTURES)
def exported_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each architecture with its graph. Tests copy it."""
    architecture = request.param
    return once(tmp_path_factory, f"exported-{architecture}", lambda directory: make_exported(architecture, directory))


@pytest.fixture
def exported(exported_base: Path, tmp_path: Path) -> Exported:
    """A copy of an exported model."""
    return Exported(exported_base, tmp_path)

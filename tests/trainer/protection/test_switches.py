"""Each part of the protection can be switched on or off by a job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from trainer.conftest import MakeJob
from twofold_checkpoint.checkpoint import TRAINING_WEIGHTS
from twofold_checkpoint.protocol.events import Event, GuardChecked, NoteAdded
from twofold_checkpoint.protocol.job import Hyperparameters, Statistical
from twofold_checkpoint.store import Store
from twofold_trainer.evaluation.gate import GateResult
from twofold_trainer.planning.plan import make_plan
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.train import train

pytestmark = pytest.mark.slow

QUICK = Hyperparameters(epochs=2, backbone_learning_rate=1e-3, head_learning_rate=1e-2)
PASSES = GateResult("pass", "nobody asked")


def trained(make_job: MakeJob, **settings: Any) -> tuple[dict[str, Tensor], list[Event]]:
    """Train all blocks of the base with some hyperparameters; return the weights and the events."""
    hyperparameters = msgspec.structs.replace(QUICK, **settings)
    plan = make_plan(make_job("ner", freeze="head", hyperparameters=hyperparameters, protection=Statistical(margin=90)))
    events = list(train(plan, StopSignal(), lambda: PASSES))
    return plan.model.state_dict(), events


def moved(store: Store, state: dict[str, Tensor]) -> set[str]:
    """Return the names of tensors that differ from the base, of heads only in the old rows."""
    base = load_file(store.get("current").path / TRAINING_WEIGHTS)
    return {name for name, tensor in base.items() if not torch.equal(tensor, state[name][: len(tensor)])}


@pytest.fixture(autouse=True)
def _keeps_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the final state of every stage, because the gains of so small a model are chance."""
    monkeypatch.setattr("twofold_trainer.training.loop.Best.update", take_all)


def take_all(best: Any, value: float, state: dict[str, Tensor], *, passes: bool, noise: float) -> None:
    """Accept every state."""
    best.value, best.state, best.epochs_without_gain = value, state, 0


@pytest.mark.parametrize(
    "settings",
    [
        {"distillation": 0.0},
        {"retention": 0.0},
        {"repair": 1.0},
        {"rehearsal_ratio": 0.0},
        {"projection": 0.9},
        {"train_norms": False},
        {"mixed_precision": True},
    ],
)
def test_a_switch_changes_what_is_trained(make_job: MakeJob, settings: dict[str, Any]) -> None:
    """Every switch changes the weights."""
    with_it, _ = trained(make_job, **settings)
    without, _ = trained(make_job)

    assert any(not torch.equal(with_it[name], without[name]) for name in without)


@pytest.mark.parametrize("guarded", [True, False])
def test_the_guard_looks_unless_it_is_switched_off(make_job: MakeJob, *, guarded: bool) -> None:
    """With the guard off, the protected task is not scored during training."""
    _, events = trained(make_job, guard=guarded, epochs=6)

    assert any(isinstance(event, GuardChecked) for event in events) == guarded


def test_frozen_norms_do_not_change(make_job: MakeJob, store: Store) -> None:
    """Without train_norms, no normalisation layer changes, and all other parameters of the blocks do."""
    names = moved(store, trained(make_job, train_norms=False)[0])

    assert not [name for name in names if "LayerNorm" in name]
    assert [name for name in names if "output.dense.weight" in name]
    assert [name for name in moved(store, trained(make_job)[0]) if "LayerNorm" in name]


def test_a_projected_update_leaks_nothing(make_job: MakeJob, store: Store) -> None:
    """With projection, only weights of linear layers change, where protected texts have no energy, and a note reports it."""
    state, events = trained(make_job, projection=0.9)

    assert {name for name in moved(store, state) if name.startswith("backbone.")}
    assert all(name.endswith(".weight") for name in moved(store, state) if name.startswith("backbone."))
    assert not [name for name in state if "parametrizations" in name]
    message = notes(events, "beyond rounding")
    assert [note.split(":")[0] for note in message] == ['Stage "all blocks"', 'Stage "refit of the top 2 blocks"']
    for note in message:
        assert 0 < float(note.split("updates used ")[1].split(" %")[0]) < 100
        assert float(note.split("dimensions, ")[1].split(" beyond")[0]) < 1e-6


def notes(events: Iterable[Event], words: str) -> list[str]:
    """Return the notes that contain some words."""
    return [event.message for event in events if isinstance(event, NoteAdded) and words in event.message]

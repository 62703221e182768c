"""The state of a stage between epochs: everything that its next epoch depends on, besides the job and the base."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

from twofold_trainer.errors import SnapshotError
from twofold_trainer.modeling.model import restore, snapshot
from twofold_trainer.training.optimization import StageTrainer
from twofold_trainer.training.snapshots import Snapshot, SnapshotHeader

State = dict[str, torch.Tensor]
"""Copies of the tensors that a stage trains, by name."""


@dataclass(slots=True)
class Best:
    """The latest accepted state whose dev score is within noise of the best accepted one, and the best rejected state.

    The guard accepts or rejects states. Learning rates decay to zero, so of two states with indistinguishable dev scores
    the later one has learned more and fluctuates less. This is the one-standard-error rule (Breiman et al. 1984), which
    prefers the later state instead of the simpler one.
    """

    value: float
    """Dev score of the state."""
    state: State
    best_accepted: float
    """Highest dev score of an accepted state, including the initial one."""
    rejected: tuple[float, State] | None = None
    highest: float = -math.inf
    epochs_without_gain: int = 0
    """Evaluations since the highest score. The initial state does not count, because scores dip during the warm-up."""

    def update(self, value: float, state: State, *, passes: bool, noise: float) -> None:
        """Keep a state if it is the best accepted or rejected one. *noise* is the standard error of a dev score."""
        self.epochs_without_gain = 0 if value > self.highest else self.epochs_without_gain + 1
        self.highest = max(self.highest, value)
        if passes and value > self.best_accepted - noise:
            self.value, self.state = value, state
            self.best_accepted = max(self.best_accepted, value)
        if not passes and (self.rejected is None or value > self.rejected[0]):
            self.rejected = value, state


@dataclass(slots=True)
class StageState:
    """What changes from epoch to epoch, apart from the model and the optimizer."""

    before: float
    """Dev score at the start of the stage."""
    best: Best
    rng: random.Random
    epochs: int = 0
    step: int = 0
    breaches: int = 0
    finished: bool = False


def to_snapshot(state: StageState, trainer: StageTrainer, initial: State) -> Snapshot:
    """Return a snapshot of a stage between two epochs. A finished stage stores only what its result depends on.

    The *initial* state is not stored, because a resumed trainer starts from it as well.
    """
    best, tensors = state.best, dict[str, torch.Tensor]()
    if best.state is not initial:
        tensors |= _with_prefix("best", best.state)
    if best.rejected is not None:
        tensors |= _with_prefix("rejected", best.rejected[1])
    if not state.finished:
        tensors |= _with_prefix("model", snapshot(trainer.model, trainer.names))
        for number, moments in trainer.optimizer.state_dict()["state"].items():
            tensors |= _with_prefix(f"optimizer/{number}", moments)
        tensors["random"] = torch.get_rng_state()
    header = SnapshotHeader(
        epochs=state.epochs,
        step=state.step,
        breaches=state.breaches,
        finished=state.finished,
        before=state.before,
        value=best.value,
        best_accepted=best.best_accepted,
        rejected=None if best.rejected is None else best.rejected[0],
        highest=best.highest,
        epochs_without_gain=best.epochs_without_gain,
        rates=tuple(group["lr"] for group in trainer.optimizer.param_groups),
        rng_state=state.rng.getstate()[1],
    )
    return Snapshot(header, tensors)


def resume(saved: Snapshot, trainer: StageTrainer, initial: State) -> StageState:
    """Restore the model, the optimizer and the stage state from a snapshot.

    The model must be in the initial state of the stage, of which *initial* is a copy. Raises SnapshotError before it
    changes anything.
    """
    header, parts = saved.header, _split_by_prefix(saved.tensors)
    for part in ("best", "rejected", *(() if header.finished else ("model",))):
        if part in parts or part == "model":
            _check_shapes(parts.get(part, {}), initial)
    best = Best(
        header.value,
        parts.get("best", initial),
        header.best_accepted,
        highest=header.highest,
        epochs_without_gain=header.epochs_without_gain,
    )
    if header.rejected is not None:
        best.rejected = header.rejected, parts.get("rejected", {})
    rng = random.Random()
    rng.setstate((random.Random.VERSION, header.rng_state, None))
    if not header.finished:
        restore(trainer.model, parts["model"])
        _resume_optimizer(trainer, saved)
        torch.set_rng_state(saved.tensors["random"])
    return StageState(header.before, best, rng, header.epochs, header.step, header.breaches, header.finished)


def _resume_optimizer(trainer: StageTrainer, saved: Snapshot) -> None:
    for _ in range(saved.header.breaches):
        trainer.halve_learning_rates()
    state = trainer.optimizer.state_dict()
    moments: dict[int, State] = {}
    for name, tensor in saved.tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            moments.setdefault(int(number), {})[key] = tensor
    for group, rate in zip(state["param_groups"], saved.header.rates, strict=True):
        group["lr"] = rate
    trainer.optimizer.load_state_dict({**state, "state": moments})
    trainer.schedule.last_epoch = saved.header.step


def _with_prefix(part: str, tensors: State) -> State:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def _split_by_prefix(tensors: State) -> dict[str, State]:
    parts: dict[str, State] = {}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        parts.setdefault(part, {})[key] = tensor
    return parts


def _check_shapes(actual: State, expected: State) -> None:
    """Raise SnapshotError unless both have the same tensor names and shapes."""
    shapes, expected_shapes = ({name: tensor.shape for name, tensor in state.items()} for state in (actual, expected))
    if shapes != expected_shapes:
        raise SnapshotError("its tensors are not those of this stage")

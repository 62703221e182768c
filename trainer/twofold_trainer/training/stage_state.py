"""How far a stage has come: all that its next epoch depends on, beside what the job and its base say."""

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
    """Keep the latest state that the guard lets pass and dev cannot tell from the best such, and the best that does not pass.

    Rates fall to zero, so of two states that dev cannot tell apart the later one has learnt more and swings less. This is
    the rule of one standard error (Breiman et al. 1984), with what came later in the place of what is simpler.
    """

    value: float
    """Dev score of the state."""
    state: State
    top: float
    """Dev score of the best state that passed. What the stage began with counts as one."""
    wild: tuple[float, State] | None = None
    highest: float = -math.inf
    fruitless: int = 0
    """Measurements since the highest one. A stage first falls while its rates rise: what it began with does not count."""

    def offer(self, value: float, state: State, *, passes: bool, chance: float) -> None:
        """Take a state if it is the best of its kind. *chance* is how far that alone moves a dev score."""
        self.fruitless = 0 if value > self.highest else self.fruitless + 1
        self.highest = max(self.highest, value)
        if passes and value > self.top - chance:
            self.value, self.state = value, state
            self.top = max(self.top, value)
        if not passes and (self.wild is None or value > self.wild[0]):
            self.wild = value, state


@dataclass(slots=True)
class StageState:
    """Hold what changes from epoch to epoch, apart from the model and its learner."""

    before: float
    """Dev score that the stage began with."""
    best: Best
    chance: random.Random
    epochs: int = 0
    step: int = 0
    breaches: int = 0
    over: bool = False


def take(progress: StageState, learner: StageTrainer, first: State) -> Snapshot:
    """Copy a stage as it is between two epochs. Of one that is over, only what its end depends on is kept.

    The state that the stage began with, *first*, is not kept: who resumes begins there as well.
    """
    best, tensors = progress.best, dict[str, torch.Tensor]()
    if best.state is not first:
        tensors |= _under("best", best.state)
    if best.wild is not None:
        tensors |= _under("wild", best.wild[1])
    if not progress.over:
        tensors |= _under("model", snapshot(learner.model, learner.names))
        for number, state in learner.optimizer.state_dict()["state"].items():
            tensors |= _under(f"optimizer/{number}", state)
        tensors["random"] = torch.get_rng_state()
    facts = SnapshotHeader(
        epochs=progress.epochs,
        step=progress.step,
        breaches=progress.breaches,
        over=progress.over,
        before=progress.before,
        value=best.value,
        top=best.top,
        wild=None if best.wild is None else best.wild[0],
        highest=best.highest,
        fruitless=best.fruitless,
        rates=tuple(group["lr"] for group in learner.optimizer.param_groups),
        chance=progress.chance.getstate()[1],
    )
    return Snapshot(facts, tensors)


def resume(kept: Snapshot, learner: StageTrainer, first: State) -> StageState:
    """Let a model and its learner be as they were when the snapshot was taken. Raises SnapshotError before anything moves.

    The model has to be as it was when the stage began, and *first* is a copy of that.
    """
    facts, parts = kept.facts, _parts(kept.tensors)
    for part in ("best", "wild", *(() if facts.over else ("model",))):
        if part in parts or part == "model":
            _check_alike(parts.get(part, {}), first)
    best = Best(facts.value, parts.get("best", first), facts.top, highest=facts.highest, fruitless=facts.fruitless)
    if facts.wild is not None:
        best.wild = facts.wild, parts.get("wild", {})
    chance = random.Random()
    chance.setstate((random.Random.VERSION, facts.chance, None))
    if not facts.over:
        restore(learner.model, parts["model"])
        _resume_optimizer(learner, kept)
        torch.set_rng_state(kept.tensors["random"])
    return StageState(facts.before, best, chance, facts.epochs, facts.step, facts.breaches, facts.over)


def _resume_optimizer(learner: StageTrainer, kept: Snapshot) -> None:
    for _ in range(kept.facts.breaches):
        learner.soften()
    state = learner.optimizer.state_dict()
    moments: dict[int, State] = {}
    for name, tensor in kept.tensors.items():
        part, _, rest = name.partition("/")
        if part == "optimizer":
            number, _, key = rest.partition("/")
            moments.setdefault(int(number), {})[key] = tensor
    for group, rate in zip(state["param_groups"], kept.facts.rates, strict=True):
        group["lr"] = rate
    learner.optimizer.load_state_dict({**state, "state": moments})
    learner.schedule.last_epoch = kept.facts.step


def _under(part: str, tensors: State) -> State:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def _parts(tensors: State) -> dict[str, State]:
    parts: dict[str, State] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _check_alike(actual: State, expected: State) -> None:
    """Raise SnapshotError unless the tensors are those that the stage trains."""
    shapes, wanted = ({name: tensor.shape for name, tensor in state.items()} for state in (actual, expected))
    if shapes != wanted:
        raise SnapshotError("its tensors are not those of this stage")

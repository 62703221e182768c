"""What a stage is taught with."""

from __future__ import annotations

from dataclasses import dataclass

from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.protection.guard import Guard
from twofold_trainer.protection.nullspace import NullSpaceConstraint
from twofold_trainer.training.objective import Objective


@dataclass(frozen=True, slots=True)
class StageInputs:
    """Hold what a stage trains on, what it minimises, where the features come from, and who guards it.

    *source* gives the features of the texts of the pool, the yardstick and the guard, from below whatever the stage
    moves.
    """

    pool: TrainingPool
    objective: Objective
    source: FeatureSource
    guard: Guard | None = None
    constraint: NullSpaceConstraint | None = None
    """Keeps the updates out of what protected texts activate, if they are to be kept out; the stage ends it."""
    untrained: FeatureSource | None = None
    """Gives the same features as the source, at less cost, as long as the stage has not moved anything, if there is such a one."""
    note: str | None = None
    """What a person is told of it."""

    def violates_guard(self) -> bool:
        """Tell whether the guard is there and would not let the model pass as it is."""
        return self.guard is not None and self.guard.score_drop(self.source) > self.guard.allowed + 1e-9

"""The inputs of one stage: data, objective, features and guard."""

from __future__ import annotations

from dataclasses import dataclass

from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.modeling.features import FeatureSource
from twofold_trainer.protection.guard import Guard
from twofold_trainer.protection.nullspace import NullSpaceConstraint
from twofold_trainer.training.objective import Objective


@dataclass(frozen=True, slots=True)
class StageInputs:
    """What a stage trains on: examples, objective, feature source, and optional guard and constraint.

    *source* returns the features of the texts of the pool, the dev set and the guard. It caches only layers below those
    that the stage trains.
    """

    pool: TrainingPool
    objective: Objective
    source: FeatureSource
    guard: Guard | None = None
    constraint: NullSpaceConstraint | None = None
    """Restricts updates to directions that protected texts do not activate, if enabled; train_stages enters and exits it."""
    untrained: FeatureSource | None = None
    """A cheaper source with the same features, valid until the stage has changed a parameter; None if there is none."""
    note: str | None = None
    """Note for the job's events, if any."""

    def violates_guard(self) -> bool:
        """Tell whether there is a guard and it rejects the current model."""
        return self.guard is not None and self.guard.score_drop(self.source) > self.guard.allowed + 1e-9

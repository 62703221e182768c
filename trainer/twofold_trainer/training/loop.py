"""The training loop of one stage."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import torch
from twofold_checkpoint.protocol.events import Event, NoteAdded

from twofold_trainer.errors import SnapshotError
from twofold_trainer.modeling.model import TwofoldModel, restore, snapshot
from twofold_trainer.planning.stage import Stage
from twofold_trainer.protection.guard import decide, is_check_due
from twofold_trainer.protection.nullspace import merged_names
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.dev_evaluator import DevEvaluator
from twofold_trainer.training.optimization import StageTrainer, make_stage_trainer
from twofold_trainer.training.progress import ProgressReporter
from twofold_trainer.training.snapshots import NO_SNAPSHOTS, ResumeSnapshots
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.stage_state import Best, StageState, State, resume, to_snapshot

INTERPOLATIONS = (0.75, 0.5, 0.35, 0.25)
"""Interpolation weights of a rejected state that are tried in order until the guard accepts one."""
STAGE_FLIP_RATE = 0.1
"""Share of the answers to new texts that a stage changes. It sets the noise of a dev score: on 100 examples of Chatbot, a
stage that gained 15 points appeared to gain nothing."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """The result of a stage: the dev scores before and after it, and the names of the tensors that it could change.

    *undo_reason* says why the stage ended in its initial state; None if it did not.
    """

    stage: Stage
    before: float
    after: float
    names: tuple[str, ...]
    undo_reason: str | None = None


@dataclass(frozen=True, slots=True)
class StageRunner:
    """Trains the stages of one training, each on its inputs. Two runs with the same seed train the same weights."""

    model: TwofoldModel
    dev_evaluator: DevEvaluator
    seed: int
    stop: StopSignal
    snapshots: ResumeSnapshots = NO_SNAPSHOTS

    def run(self, stage: Stage, inputs: StageInputs, reporter: ProgressReporter) -> Generator[Event, None, StageResult]:
        """Train a stage and leave the model in its best state that the guard accepts; that may be the initial state.

        If there is a snapshot of the stage, training resumes from it. Raises CancelledError.
        """
        trainer = make_stage_trainer(self.model, stage, inputs)
        torch.manual_seed(self._seed_of(stage))  # Dropout draws from the global generator.
        initial = snapshot(self.model, trainer.names)
        state = yield from self._resume(stage, trainer, initial, reporter)
        if state is None:
            state = yield from self._begin(stage, inputs, initial)
        best, noise = state.best, self.dev_evaluator.noise_margin(STAGE_FLIP_RATE)
        while not state.finished:
            given_up = yield from self._train_epoch(stage, inputs, trainer, state, reporter)
            self.stop.check()
            score = self.dev_evaluator.measure(self.model, inputs.source)
            yield score
            best.update(
                score.value, snapshot(self.model, trainer.names), passes=not inputs.violates_guard(), noise=noise
            )
            state.epochs += 1
            state.finished = (
                given_up
                or state.epochs >= stage.epochs
                or best.epochs_without_gain >= stage.patience
                or self.stop.is_past_deadline
            )
            yield from self.snapshots.save_if_due(stage.number, partial(to_snapshot, state, trainer, initial))
        self._interpolate(inputs, best, initial, noise)
        restore(self.model, best.state)
        self.model.eval()
        names = trainer.names if inputs.constraint is None else merged_names(trainer.names)
        return StageResult(stage, state.before, best.value, names, _undo_reason(best, initial))

    def _seed_of(self, stage: Stage) -> int:
        return (self.seed * 1000 + stage.number) % 2**63

    def _resume(
        self, stage: Stage, trainer: StageTrainer, initial: State, reporter: ProgressReporter
    ) -> Generator[Event, None, StageState | None]:
        """Restore the stage from its snapshot; returns None if there is none that can be used."""
        try:
            saved = self.snapshots.find(stage.number)
            if saved is None:
                return None
            state = resume(saved, trainer, initial)
        except SnapshotError as error:
            message = f'Ignored the snapshot of stage "{stage.name}": {error}. The stage restarts from the beginning.'
            yield NoteAdded(message=message, warning=True)
            return None
        reporter.skip(state.step)
        yield NoteAdded(message=f'Stage "{stage.name}" resumes from its snapshot after epoch {state.epochs}.')
        return state

    def _begin(self, stage: Stage, inputs: StageInputs, initial: State) -> Generator[Event, None, StageState]:
        score = self.dev_evaluator.measure(self.model, inputs.untrained or inputs.source)
        yield score
        best = Best(score.value, initial, score.value)
        return StageState(score.value, best, random.Random(self._seed_of(stage)), finished=not stage.epochs)

    def _train_epoch(
        self, stage: Stage, inputs: StageInputs, trainer: StageTrainer, state: StageState, reporter: ProgressReporter
    ) -> Generator[Event, None, bool]:
        """Train an epoch, up to the deadline; returns whether the guard gave the stage up."""
        batch_size, guard = stage.recipe.batch_size, inputs.guard
        for batches in inputs.pool.epoch(batch_size, state.rng):
            self.stop.check()
            if self.stop.is_past_deadline:
                break
            state.step += 1
            if (progress := reporter.advance(stage.name, trainer.step(batches))) is not None:
                yield progress
            if guard is None or not is_check_due(state.step, inputs.pool.steps(batch_size)):
                continue
            drop = guard.score_drop(inputs.source)
            action = decide(drop, guard.allowed, state.breaches)
            yield guard.event(state.step, drop, action)
            if action == "leave":
                return True
            if action == "restore":
                state.breaches += 1
                restore(self.model, state.best.state)
                trainer.halve_learning_rates()
        return False

    def _interpolate(self, inputs: StageInputs, best: Best, initial: State, noise: float) -> None:
        """Interpolate from the best rejected state toward the initial one until the guard accepts (WiSE-FT, arXiv:2109.01903)."""
        if best.state is not initial:
            noise = 0.0  # Only a better state may replace one that the guard accepted.
        if best.rejected is None or best.rejected[0] <= best.value - noise:
            return
        for weight in INTERPOLATIONS:
            between = {name: torch.lerp(initial[name], tensor, weight) for name, tensor in best.rejected[1].items()}
            restore(self.model, between)
            if not inputs.violates_guard():
                score = self.dev_evaluator.measure(self.model, inputs.source)
                best.update(score.value, between, passes=True, noise=noise)
                return


def _undo_reason(best: Best, initial: State) -> str | None:
    if best.state is not initial:
        return None
    return "did not improve the dev score" if best.rejected is None else "never passed the guard"

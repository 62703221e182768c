"""Runs stages in order and keeps each only if it improves the dev score (gradual unfreezing, arXiv:1801.06146)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from twofold_checkpoint.protocol.events import Event, NoteAdded, PhaseStarted

from twofold_trainer.modeling.model import restore, snapshot
from twofold_trainer.planning.stage import Stage
from twofold_trainer.training.loop import StageResult, StageRunner
from twofold_trainer.training.progress import ProgressReporter
from twofold_trainer.training.stage_inputs import StageInputs

TIME_LIMIT = "the time limit was reached"


@dataclass(frozen=True, slots=True)
class StagesResult:
    """The stages that were kept, and why training ended."""

    completed_stages: tuple[StageResult, ...]
    reason: str

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors that the kept stages trained."""
        return frozenset(name for trained in self.completed_stages for name in trained.names)


def train_stages(
    runner: StageRunner, stages: Sequence[Stage], make_inputs: Callable[[Stage], StageInputs]
) -> Generator[Event, None, StagesResult]:
    """Run stages in order. A stage that trains blocks without improvement is undone and ends the training.

    A refit stage without improvement is undone, and training continues. The probe of the heads is never undone, because
    later stages build on it.
    """
    reporter = ProgressReporter(sum(stage.steps for stage in stages))
    completed: list[StageResult] = []
    phase = ""
    for stage in stages:
        if runner.stop.is_past_deadline and not runner.snapshots.has(stage.number):
            return StagesResult(tuple(completed), TIME_LIMIT)
        stage_phase = "train" if stage.blocks or stage.follows else "probe"
        if stage_phase != phase:
            phase = stage_phase
            yield PhaseStarted(phase=phase)
        before = snapshot(runner.model, runner.model.state_dict())
        trained = yield from _train_stage(runner, stage, make_inputs(stage), reporter)
        figures = f"dev {100 * trained.before:.1f} -> {100 * trained.after:.1f}"
        if trained.undo_reason is None or not (stage.blocks or stage.follows):
            completed.append(trained)
            yield NoteAdded(message=f'Stage "{stage.name}" was kept: {figures}.')
            continue
        undone = f'"{stage.name}" {trained.undo_reason} ({figures}) and was undone'
        if not stage.follows:
            restore(runner.model, before)
            return StagesResult(tuple(completed), f"stage {undone}")
        yield NoteAdded(message=f"Stage {undone}.")
    if runner.stop.is_past_deadline:
        return StagesResult(tuple(completed), TIME_LIMIT)
    return StagesResult(tuple(completed), "the plan was completed")


def _train_stage(
    runner: StageRunner, stage: Stage, inputs: StageInputs, reporter: ProgressReporter
) -> Generator[Event, None, StageResult]:
    """Run a stage under its constraint, if it has one, and report how far the constraint held."""
    if inputs.note is not None:
        yield NoteAdded(message=inputs.note)
    with inputs.constraint or nullcontext():
        trained = yield from runner.run(stage, inputs, reporter)
    if inputs.constraint is not None:
        yield NoteAdded(message=f'Stage "{stage.name}": {inputs.constraint.leak()}.')
    return trained

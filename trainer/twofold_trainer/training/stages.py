"""Runs stages in order and keeps each only if it improves the dev score (gradual unfreezing, arXiv:1801.06146)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from twofold_checkpoint.protocol.events import Event, NoteAdded, PhaseStarted

from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.modeling.model import TwofoldModel, restore, snapshot
from twofold_trainer.planning.stage import Stage
from twofold_trainer.recipe import Recipe
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.loop import DevEvaluator, StageResult, train_stage
from twofold_trainer.training.progress import ProgressReporter
from twofold_trainer.training.snapshots import NO_SNAPSHOTS, ResumeSnapshots
from twofold_trainer.training.stage_inputs import StageInputs


@dataclass(frozen=True, slots=True)
class StagesResult:
    """The stages that were kept, and why training ended."""

    completed_stages: tuple[StageResult, ...]
    reason: str
    complete: bool = True
    """Whether every stage was kept."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors that the kept stages trained."""
        return frozenset(name for trained in self.completed_stages for name in trained.names)


def train_stages(
    model: TwofoldModel,
    stages: Sequence[Stage],
    recipe: Recipe,
    pool: Callable[[Stage], TrainingPool],
    prepare: Callable[[Stage], StageInputs],
    *,
    dev_evaluator: DevEvaluator,
    seed: int,
    stop: StopSignal,
    first: int = 0,
    snapshots: ResumeSnapshots = NO_SNAPSHOTS,
) -> Generator[Event, None, StagesResult]:
    """Run stages in order. A stage that trains blocks without improvement is undone and ends the training.

    A refit stage without improvement is undone, and training continues. The probe of the heads is never undone, because
    later stages build on it. *first* is the number of earlier stages; it makes each stage's seed and snapshot unique.
    """
    reporter = ProgressReporter(sum(stage.steps(recipe, pool(stage)) for stage in stages))
    completed: list[StageResult] = []
    phase = ""
    for number, stage in enumerate(stages, first):
        if stop.is_past_deadline and not snapshots.has(number):
            return StagesResult(tuple(completed), "the time limit was reached", complete=False)
        wanted = "train" if stage.blocks or stage.follows else "probe"
        if wanted != phase:
            phase = wanted
            yield PhaseStarted(phase=phase)
        before = snapshot(model, model.state_dict())
        inputs = prepare(stage)
        if inputs.note is not None:
            yield NoteAdded(message=inputs.note)
        with inputs.constraint or nullcontext():
            trained = yield from train_stage(
                model,
                stage,
                recipe,
                inputs,
                dev_evaluator,
                seed=(seed * 1000 + number) % 2**63,
                reporter=reporter,
                stop=stop,
                number=number,
                snapshots=snapshots,
            )
        if inputs.constraint is not None:
            yield NoteAdded(message=f"Stage {stage.name}: {inputs.constraint.leak()}.")
        figures = f"dev {100 * trained.before:.1f} -> {100 * trained.after:.1f}"
        if stage.follows and trained.undo_reason is not None:
            yield NoteAdded(message=f"Stage {stage.name} {trained.undo_reason} ({figures}) and was undone.")
            continue
        if stage.blocks and trained.undo_reason is not None:
            restore(model, before)
            return StagesResult(
                tuple(completed),
                f"stage {stage.name} {trained.undo_reason} ({figures}) and was undone",
                complete=False,
            )
        completed.append(trained)
        yield NoteAdded(message=f"Stage {stage.name} was kept: {figures}.")
    if stop.is_past_deadline:
        return StagesResult(tuple(completed), "the time limit was reached", complete=False)
    return StagesResult(tuple(completed), "the plan was completed")

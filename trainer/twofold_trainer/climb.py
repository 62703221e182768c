"""Stages one after the other, each kept only if it helps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from twofold_checkpoint.events import Event, Noted, PhaseStarted

from twofold_trainer.batches import Pool
from twofold_trainer.features import FeatureCache
from twofold_trainer.loop import Pace, Stage, Trained, Yardstick, train_stage
from twofold_trainer.model import TwofoldModel, restore, snapshot
from twofold_trainer.recipe import MIN_GAIN, Recipe
from twofold_trainer.stop import Stop

Breach = Callable[[TwofoldModel], Generator[Event, None, str | None]]
"""Looks at the model after a stage that moved blocks, and says why it may not be kept, or None."""


@dataclass(frozen=True, slots=True)
class Climbed:
    """Say which stages were kept and why there are no more."""

    kept: tuple[Trained, ...]
    reason: str

    @property
    def names(self) -> frozenset[str]:
        """The tensors that the kept stages trained."""
        return frozenset(name for trained in self.kept for name in trained.names)


def climb(
    model: TwofoldModel,
    stages: Sequence[Stage],
    recipe: Recipe,
    pools: Callable[[Stage], Pool],
    yardstick: Yardstick,
    *,
    pad_id: int,
    seed: int,
    stop: Stop,
    cache: FeatureCache | None,
    breach: Breach | None = None,
) -> Generator[Event, None, Climbed]:
    """Run stages from the cheapest to the strongest. One that does not help, or breaks something, is undone and ends it.

    The probe of new heads is never undone: without it there would be nothing to build on.
    """
    pace = Pace(sum(stage.steps(recipe, pools(stage)) for stage in stages))
    kept: list[Trained] = []
    phase = ""
    for number, stage in enumerate(stages):
        if stop.time_is_over:
            return Climbed(tuple(kept), "the time was over")
        wanted = "train" if stage.blocks else "probe"
        if wanted != phase:
            phase = wanted
            yield PhaseStarted(phase=phase)
        before = snapshot(model, (name for name, _ in model.named_parameters()))
        trained = yield from train_stage(
            model,
            stage,
            recipe,
            pools(stage),
            yardstick,
            pad_id=pad_id,
            seed=(seed * 1000 + number) % 2**63,
            pace=pace,
            stop=stop,
            cache=None if stage.blocks else cache,
        )
        figures = f"dev {100 * trained.before:.1f} -> {100 * trained.best:.1f}"
        broken = (yield from breach(model)) if breach is not None and stage.blocks else None
        if broken is not None:
            restore(model, before)
            return Climbed(tuple(kept), f"{stage.name} was undone because {broken}")
        if stage.blocks and trained.best < trained.before + MIN_GAIN:
            restore(model, before)
            return Climbed(tuple(kept), f"{stage.name} did not help ({figures}) and was undone")
        kept.append(trained)
        yield Noted(message=f"Stage {stage.name} was kept: {figures}.")
    ended = "the time was over" if stop.time_is_over else "the plan was carried out"
    return Climbed(tuple(kept), ended)

"""One stage of a plan: which heads and blocks it trains, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from twofold_checkpoint.manifest import HeadName

from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that trains *heads* and the top *blocks* of the *of* blocks on their path.

    A *forked* stage trains the adapted head's copies of the blocks and leaves the protected head's path unchanged. A refit
    stage *follows* another one: it trains the head, and possibly the upper blocks, once more on top of the blocks that
    the earlier stage trained.
    """

    heads: tuple[HeadName, ...]
    blocks: int
    of: int
    forked: bool = False
    follows: Stage | None = None

    @property
    def name(self) -> str:
        """Human-readable name of the stage."""
        if self.follows is not None:
            upper = f"the upper {self.blocks} blocks" if self.blocks > 1 else "the top block"
            return f"{upper if self.blocks else 'the head'} once more"
        if not self.blocks:
            return "heads"
        if self.forked:
            return f"own copies of the top {self.blocks} blocks" if self.blocks > 1 else "an own copy of the top block"
        if self.blocks >= self.of:
            return "all blocks"
        return f"top {self.blocks} blocks" if self.blocks > 1 else "top block"

    @property
    def balances(self) -> bool:
        """Whether the stage trains upper blocks once more, on all new and all remembered texts."""
        return self.follows is not None and self.blocks > 0

    def epochs(self, recipe: Recipe) -> int:
        """Return the maximum number of epochs."""
        if self.follows is not None:
            return recipe.balance_epochs if self.balances else recipe.refit_epochs
        if not self.blocks:
            return recipe.probe_epochs
        if self.forked:
            return ceil(recipe.fork_share * recipe.epochs)
        return recipe.epochs if self.blocks >= recipe.unfrozen_blocks else recipe.middle_epochs

    def patience(self, recipe: Recipe) -> int:
        """Return the number of epochs without a better dev score that end the stage; refit stages run all epochs."""
        return recipe.patience if self.follows is None else self.epochs(recipe)

    def steps(self, recipe: Recipe, pool: TrainingPool) -> int:
        """Return the number of steps without early stopping."""
        return self.epochs(recipe) * pool.steps(recipe.batch_size)

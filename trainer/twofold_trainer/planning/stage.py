"""One stage of a plan: what it trains."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from twofold_checkpoint.manifest import HeadName

from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Stage:
    """Say what a stage trains: these heads, and the top *blocks* blocks of *of* on their path.

    A stage that is *forked* trains the adapted head's own copies of them, and the other head's path does not move. One that
    *follows* another trains the head, and perhaps upper blocks, once more over what those below see that the other one trained.
    """

    heads: tuple[HeadName, ...]
    blocks: int
    of: int
    forked: bool = False
    follows: Stage | None = None

    @property
    def name(self) -> str:
        """The stage's name for people."""
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
        """Whether it trains blocks once more, on all that is new and all that is remembered."""
        return self.follows is not None and self.blocks > 0

    def epochs(self, recipe: Recipe) -> int:
        """How many epochs it has at most."""
        if self.follows is not None:
            return recipe.balance_epochs if self.balances else recipe.refit_epochs
        if not self.blocks:
            return recipe.probe_epochs
        if self.forked:
            return ceil(recipe.fork_share * recipe.epochs)
        return recipe.epochs if self.blocks >= recipe.unfrozen_blocks else recipe.middle_epochs

    def patience(self, recipe: Recipe) -> int:
        """How many epochs without a better dev score end it. What follows a stage goes to its end."""
        return recipe.patience if self.follows is None else self.epochs(recipe)

    def steps(self, recipe: Recipe, pool: TrainingPool) -> int:
        """How many steps it has if it is not ended early."""
        return self.epochs(recipe) * pool.steps(recipe.batch_size)

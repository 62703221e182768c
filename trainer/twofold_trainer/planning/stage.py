"""One stage of a training: which heads and blocks it trains, on which examples, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A stage that trains *heads* and the top *blocks* of the *total_blocks* blocks on their path.

    A *forked* stage trains the adapted head's copies of the blocks and leaves the protected head's path unchanged. A refit
    stage *follows* another one: it continues to train the head, and possibly the upper half of the blocks.
    """

    heads: tuple[HeadName, ...]
    blocks: int
    total_blocks: int
    recipe: Recipe
    pool: TrainingPool
    number: int = 0
    """Position in the training; it selects the random seed and the resume snapshot."""
    forked: bool = False
    follows: Stage | None = None
    branch_blocks: int = 0
    """Number of top blocks that the base has already forked."""

    @property
    def name(self) -> str:
        """Human-readable name of the stage."""
        top = f"top {self.blocks} blocks" if self.blocks > 1 else "top block"
        if self.follows is not None:
            return f"refit of the {top}" if self.blocks else "refit of the head"
        if not self.blocks:
            return "heads"
        if self.forked:
            return f"fork of the {top}"
        return "all blocks" if self.blocks >= self.total_blocks else top

    @property
    def frozen_blocks(self) -> int:
        """Number of bottom blocks that the stage does not train."""
        return self.total_blocks - self.blocks

    @property
    def moves_protected(self) -> bool:
        """Whether the stage trains blocks that the protected head reads as well."""
        return self.blocks > self.branch_blocks and not self.forked

    @property
    def affected_heads(self) -> tuple[HeadName, ...]:
        """The heads whose predictions the stage may change."""
        return HEADS if self.moves_protected else self.heads

    @property
    def is_balanced_refit(self) -> bool:
        """Whether this is the refit stage that trains upper blocks on all new and all remembered texts, equally weighted."""
        return self.follows is not None and self.blocks > 0

    @property
    def full_rehearsal_pool(self) -> TrainingPool:
        """The pool to use if the old labels have dropped: a fork then rehearses at the ratio of shared blocks."""
        if not self.forked or self.follows is not None:
            return self.pool
        return replace(self.pool, ratio=self.recipe.rehearsal_ratio)

    @property
    def epochs(self) -> int:
        """Maximum number of epochs."""
        recipe = self.recipe
        if self.follows is not None:
            return recipe.balance_epochs if self.is_balanced_refit else recipe.refit_epochs
        if not self.blocks:
            return recipe.probe_epochs
        if self.forked:
            return ceil(recipe.fork_share * recipe.epochs)
        return recipe.epochs if self.blocks >= recipe.unfrozen_blocks else recipe.middle_epochs

    @property
    def patience(self) -> int:
        """Number of epochs without a better dev score that end the stage; refit stages run all epochs."""
        return self.recipe.patience if self.follows is None else self.epochs

    @property
    def steps(self) -> int:
        """Number of steps without early stopping."""
        return self.epochs * self.pool.steps(self.recipe.batch_size)

    @property
    def head_learning_rate(self) -> float:
        """Learning rate of the heads."""
        if self.blocks:
            return self.recipe.head_learning_rate
        return self.recipe.probe_learning_rate if self.follows is None else self.recipe.refit_learning_rate

    @property
    def block_learning_rate(self) -> float:
        """Learning rate of the top block."""
        return self.recipe.fork_learning_rate if self.forked else self.recipe.backbone_learning_rate

"""The stages of a job, in the order in which they run, from its freeze mode and its recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.manifest import Branch
from twofold_checkpoint.protocol.job import Exact, Freeze, TrainingRequest

from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.datasets.targets import Target
from twofold_trainer.modeling.features import cache_bytes, fits_in_memory
from twofold_trainer.planning.stage import Stage
from twofold_trainer.recipe import Recipe
from twofold_trainer.scoring.noninferiority import EXPECTED_FLIPS, provable_margin

SHARED_NUMBER, FORKED_NUMBER = 1, 3
"""Numbers of the stages that freeze mode "auto" adds to the probe. They are part of the seeds, so they never change."""


@dataclass(frozen=True, slots=True)
class StagePlanner:
    """Makes the stages of a job."""

    request: TrainingRequest
    recipe: Recipe
    new: tuple[Target, ...]
    rehearsed: tuple[Target, ...]
    blocks: int
    """Number of blocks of the backbone."""
    hidden_size: int
    branch: Branch | None
    """The base's fork, if it has one."""

    def stages(self, shared_blocker: str | None) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
        """Return the stages that run if all succeed, and those that freeze mode "auto" uses if the shared backbone fails.

        *shared_blocker* says why mode "auto" skips the shared backbone; None if it does not.
        """
        planned = blocks_per_stage(self.request.freeze, blocks=self.blocks, unfrozen=self.recipe.unfrozen_blocks)
        stages = tuple(self.stage(blocks, number=number) for number, blocks in enumerate(planned))
        if self.request.freeze != "auto":
            return (*stages, *(self.refit_stages(stages[-1], stages) if stages else ())), ()
        candidates = (self.forked(),) if shared_blocker else (self.shared(), self.forked())
        first, *fallback = ((stage, *self.refit_stages(stage, candidates)) for stage in candidates)
        return (*stages, *first), fallback[0] if fallback else ()

    def shared(self) -> Stage:
        """Return the stage in which freeze mode "auto" trains shared blocks."""
        return self.stage(min(self.recipe.unfrozen_blocks, self.blocks), number=SHARED_NUMBER)

    def forked(self) -> Stage:
        """Return the stage in which freeze mode "auto" trains a fork: the adapted head's copies of the top blocks."""
        blocks = self.recipe.fork_blocks if self.branch is None else self.branch.blocks
        return self.stage(min(blocks, self.blocks), number=FORKED_NUMBER, forked=True)

    def refit_stages(self, stage: Stage, planned: Iterable[Stage]) -> tuple[Stage, ...]:
        """Return the refit stages after a stage that trains blocks; none for freeze mode "staged".

        The first trains the head again on the learned features, like the classifier of Kang et al. 2020 (arXiv:1910.09217).
        It needs cached features, because it would otherwise run every text six more times. The second trains the head and
        the upper half of the blocks on all new and remembered texts: the balanced fine-tuning of Castro et al. 2018
        (arXiv:1807.09536). Both need rehearsal, except that a fork always gets the second. *planned* are all stages that
        may run; they determine whether the features fit in memory.
        """
        if not stage.blocks or self.request.freeze == "staged":
            return ()
        head = self.stage(0, number=stage.number + 1, follows=stage)
        fits = fits_in_memory(cache_bytes(training_encodings(planned), self.hidden_size))
        refits = (head,) if head.pool.rehearsed_per_epoch and fits else ()
        if not head.pool.rehearsed_per_epoch and not stage.forked:
            return ()
        number = stage.number + 1 + len(refits)
        return (
            *refits,
            self.stage(stage.blocks - stage.blocks // 2, number=number, forked=stage.forked, follows=stage),
        )

    def stage(self, blocks: int, *, number: int, forked: bool = False, follows: Stage | None = None) -> Stage:
        """Return a stage with its pool. Only a stage that trains shared blocks rehearses the protected head too."""
        branch_blocks = 0 if self.branch is None else self.branch.blocks
        head, recipe, rehearsed = self.request.head, self.recipe, self.rehearsed
        if forked or blocks <= branch_blocks:
            rehearsed = tuple(target for target in rehearsed if target.has_labels_for(head))
        ratio = recipe.fork_rehearsal_ratio if forked else recipe.rehearsal_ratio
        if follows is not None and self.request.hyperparameters.rehearsal_ratio is None:
            ratio = len(rehearsed) / len(self.new)  # Features are cached, so rehearsing everything is cheap.
        pool = TrainingPool(self.new, rehearsed, ratio)
        return Stage((head,), blocks, self.blocks, recipe, pool, number, forked, follows, branch_blocks)


def blocks_per_stage(freeze: Freeze, *, blocks: int, unfrozen: int) -> tuple[int, ...]:
    """Return the number of top blocks that each stage trains, in order. 0 trains only the heads.

    Every plan starts with the heads: a probed head distorts the backbone less (Kumar et al. 2022, arXiv:2202.10054).
    Freeze mode "auto" chooses its further stages during the training.
    """
    match freeze:
        case "all":
            return ()
        case "backbone" | "auto":
            return (0,)
        case "head":
            return (0, unfrozen)
        case "staged":
            return (0, *range(min(2, blocks), blocks + 1))


def training_encodings(stages: Iterable[Stage]) -> list[Encoding]:
    """Return all texts that stages may train on: the new ones, and the largest set of remembered ones that one rehearses."""
    pool = max((stage.pool for stage in stages), key=lambda pool: len(pool.rehearsed), default=TrainingPool(()))
    return [target.encoding for target in (*pool.new, *pool.rehearsed)]


def shared_backbone_blocker(request: TrainingRequest, branch: Branch | None, protected_examples: int) -> str | None:
    """Return why freeze mode "auto" skips the shared backbone; None if its protection can be proven on the examples."""
    if isinstance(request.protection, Exact):
        return "protection is exact"
    if branch is not None:
        return "the heads are already forked"
    if not protected_examples:
        return "there are no held-out examples of the protected task"
    provable = 100 * provable_margin(protected_examples, EXPECTED_FLIPS)
    if provable > request.protection.margin:
        return f"{protected_examples} protected examples cannot prove a margin below {provable:.1f} points for a shared backbone"
    return None

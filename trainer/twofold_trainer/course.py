"""What every stage of a job shares: the frozen prefix, the teacher, the guard and the yardstick."""

from __future__ import annotations

from functools import partial

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.job import Statistical
from twofold_checkpoint.manifest import HEADS, HeadName, other
from twofold_checkpoint.memory import balanced_sample

from twofold_trainer import recipe
from twofold_trainer.boundary import BoundaryCache
from twofold_trainer.features import FeatureCache, FeatureSource, cache_bytes, live
from twofold_trainer.guard import Guard, allowance
from twofold_trainer.lesson import Lesson
from twofold_trainer.loop import Yardstick
from twofold_trainer.model import load_model
from twofold_trainer.objective import Distillation, Objective
from twofold_trainer.plan import Plan
from twofold_trainer.scoring import ROWS, Judge
from twofold_trainer.stage import Stage
from twofold_trainer.stop import Stop
from twofold_trainer.teacher import Teacher


class Course:
    """Prepare the stages of a job.

    The base model runs once over every text. What enters the first block that any stage trains is kept, and so is what
    the heads read: the probe and the teacher need no backbone then.
    """

    def __init__(self, plan: Plan, stop: Stop) -> None:
        self._plan = plan
        self._stop = stop
        job, head = plan.job, plan.job.head

        def judge(part: str, head: HeadName) -> Judge:
            examples = (plan.memory if part == "memory" else plan.parts).dev
            return Judge(balanced_sample(examples, recipe.MEMORY_DEV, seed=job.seed), head, plan.encoder, stop)

        self.yardstick = Yardstick((judge("new", head), judge("memory", head)), plan.labels)
        self._protected = judge("memory", other(head))
        self._encodings: list[Encoding] = [target.encoding for target in (*plan.new, *plan.rehearsed)]
        for one in (*self.yardstick.judges, self._protected):
            self._encodings += one.encodings
        self._features = FeatureCache()
        self._boundaries: dict[int, BoundaryCache] = {}
        self.fits = cache_bytes(self._encodings, plan.base.manifest.hidden_size) <= recipe.CACHE_BYTES
        self._teacher: Teacher | None = None
        self.guard: Guard | None = None

    def fill(self) -> None:
        """Run the base model over every text, once, and ask it what it answers. Raises CancelledError."""
        plan, model = self._plan, self._plan.model
        if self.fits:
            below = self._boundary(plan.deepest())
            for _ in self._features.fill(below or self._live(), self._encodings, rows=ROWS):
                self._stop.check()
        source = self.base_features
        if not self.fits and plan.stages:
            # The teacher answers from its own copy, for this one is going to move.
            source = live(load_model(plan.base), plan.encoder.settings.pad_id)
        self._teacher = Teacher(model, source)
        first = self._protected.score(model, plan.base.manifest.labels, source)
        if first is not None and isinstance(plan.job.protection, Statistical):
            allowed = allowance(plan.job.protection.margin, first.examples)
            self.guard = Guard(model, self._protected, plan.base.manifest.labels, first.value, allowed)

    @property
    def base_features(self) -> FeatureSource:
        """Return the features that the base computes of the job's texts."""
        return self._features.get if self.fits else self._live()

    def lesson(self, stage: Stage) -> Lesson:
        """Prepare a stage."""
        plan, head = self._plan, self._plan.job.head
        shared = plan.moves_protected(stage)
        heads: tuple[HeadName, ...] = HEADS if shared else (head,)
        assert self._teacher is not None, "A lesson was asked for before the cache was filled. This is a bug."
        settings = plan.recipe
        distilled = Distillation(self._teacher, settings.distillation, settings.retention, settings.temperature)
        return Lesson(
            pool=plan.pool(stage),
            objective=Objective(heads, plan.recipe.ner_weight, head, forgets=not plan.kept, distillation=distilled),
            source=self._source(stage, heads),
            guard=self.guard if shared else None,
        )

    def _source(self, stage: Stage, heads: tuple[HeadName, ...]) -> FeatureSource:
        """Choose the cheapest source that a stage leaves true: what lies below the blocks that it moves."""
        if not stage.blocks and self.fits:
            return self._features.get
        return self._boundary(stage.of - stage.blocks, heads) or self._live(heads)

    def _boundary(self, depth: int, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource | None:
        """Return a source over what enters the block at *depth*, which is computed once; None if nothing is gained."""
        model = self._plan.model
        if not self.fits or not model.can_fork or not 0 < depth <= model.fork_point or depth == len(model.blocks()):
            return None
        if depth not in self._boundaries:
            self._boundaries[depth] = BoundaryCache(model, depth, self._plan.encoder.settings.pad_id)
            for _ in self._boundaries[depth].fill(self._encodings, rows=ROWS):
                self._stop.check()
        return partial(self._boundaries[depth].features, heads=heads)

    def _live(self, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource:
        return live(self._plan.model, self._plan.encoder.settings.pad_id, heads=heads)

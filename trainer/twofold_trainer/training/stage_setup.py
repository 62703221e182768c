"""What every stage of a job shares: the frozen prefix, the teacher, the guard and the yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HEADS, HeadName, other_head
from twofold_checkpoint.memory import balanced_sample
from twofold_checkpoint.protocol.job import Statistical

from twofold_trainer import recipe
from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.datasets.batching import chunks
from twofold_trainer.modeling.features import FeatureCache, FeatureSource, live
from twofold_trainer.modeling.mixed_precision import in_mixed_precision
from twofold_trainer.modeling.model import load_model
from twofold_trainer.modeling.prefix_cache import PrefixCache
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.protection.covariances import Covariances, collect_covariances, linear_names
from twofold_trainer.protection.guard import Guard, allowance
from twofold_trainer.protection.nullspace import NullSpaceConstraint, constrain
from twofold_trainer.protection.teacher import Teacher
from twofold_trainer.scoring.scorer import ROWS, Scorer
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.loop import DevEvaluator
from twofold_trainer.training.objective import Distillation, Objective
from twofold_trainer.training.stage_inputs import StageInputs


class Course:
    """Prepare the stages of a job.

    The base model runs once over every text. What enters the first block that any stage trains is kept, and so is what
    the heads read: the probe and the teacher need no backbone then.
    """

    def __init__(self, plan: Plan, stop: StopSignal) -> None:
        self._plan = plan
        self._stop = stop
        job, head = plan.job, plan.job.head

        def judge(examples: Sequence[Example], head: HeadName) -> Scorer:
            return Scorer(balanced_sample(examples, recipe.MEMORY_DEV, seed=job.seed), head, plan.encoder, stop)

        self.yardstick = DevEvaluator((judge(plan.parts.dev, head), judge(plan.memory.dev, head)), plan.labels)
        self._taught: list[Encoding] = [target.encoding for target in (*plan.new, *plan.recalled)]
        self._judged = [encoding for judge in self.yardstick.judges for encoding in judge.encodings]
        self._moves_protected = any(map(plan.moves_protected, plan.possible))
        self._protected: Scorer | None = None
        if self._moves_protected and isinstance(plan.job.protection, Statistical) and plan.recipe.guard:
            self._protected = judge(annotated_for(plan.protected("dev"), other_head(head)), other_head(head))
            self._judged += self._protected.encodings
        self._features = FeatureCache()
        self._boundaries: dict[int, PrefixCache] = {}
        self._refits: dict[Stage, FeatureCache] = {}
        self._entering: dict[Stage, PrefixCache] = {}
        self._moved = False
        self.fits = plan.keeps_features
        self._teacher: Teacher | None = None
        self._covariances: Covariances = {}
        self.guard: Guard | None = None
        self.floor: float | None = None
        """Dev score of the old labels below which they have fallen; None if nothing measures them."""

    def fill(self) -> None:
        """Run the base model over every text, once, and ask it what it answers. Raises CancelledError."""
        plan, model = self._plan, self._plan.model
        if self.fits:
            self._keep(self._features, self._boundary(plan.deepest()) or self._live(), self._taught, self._judged)
        source = self.base_features
        if not self.fits and plan.stages:
            # The teacher answers from its own copy, for this one is going to move.
            source = live(load_model(plan.base), plan.encoder.settings.pad_id)
        self._teacher = Teacher(model, self._teaching(source))
        self.guard = self._set_guard(source)
        kept = self.yardstick.judges[1].score(model, plan.base.manifest.labels, source)
        self.floor = None if kept is None else kept.value
        if plan.recipe.projection and self._moves_protected:
            self._covariances = self._collect()

    def _set_guard(self, source: FeatureSource) -> Guard | None:
        """Let the guard note where the protected head begins; None if nothing can move it, or nothing measures it."""
        labels, protection = self._plan.base.manifest.labels, self._plan.job.protection
        if self._protected is None or not isinstance(protection, Statistical):
            return None
        first = self._protected.score(self._plan.model, labels, source)
        if first is None:
            return None
        allowed = allowance(protection.margin, first.examples)
        return Guard(self._plan.model, self._protected, labels, first.value, allowed)

    def _collect(self) -> Covariances:
        """Return what the base remembers of its activations, or run it over the protected texts that may be trained on."""
        plan, protected = self._plan, other_head(self._plan.job.head)
        if plan.statistics is not None:
            return plan.statistics
        encodings = [target.encoding for target in plan.rehearsed if target.teaches(protected)]
        if not encodings:
            return {}

        return collect_covariances(
            plan.model, plan.model.blocks(), chunks(encodings, ROWS), plan.encoder.settings.pad_id
        )

    @property
    def base_features(self) -> FeatureSource:
        """Return the features that the base computes of the job's texts."""
        return self._features.get if self.fits else self._live()

    def lesson(self, stage: Stage) -> StageInputs:
        """Prepare a stage."""
        plan, head = self._plan, self._plan.job.head
        shared, untrained = plan.moves_protected(stage), self._untrained(stage)
        lost = self._lost_before(stage, untrained)
        firmly = lost > recipe.FALLEN
        note = f"The old labels have lost {100 * lost:.1f} points on dev: {stage.name} rehearses them firmly."
        assert self._teacher is not None, "A lesson was asked for before the cache was filled. This is a bug."
        settings = plan.recipe
        recalls = any(target.teaches(head) for target in plan.rehearsed)
        distilled = Distillation(
            self._teacher,
            protected=settings.distillation,
            retained=settings.retention,
            retained_on_new=0.0 if recalls else settings.retention,
            repair=settings.repair,
            temperature=settings.temperature,
        )
        self._moved = self._moved or stage.blocks > 0
        return StageInputs(
            pool=plan.pool(stage, firmly=firmly),
            objective=Objective(
                self._heads(stage),
                settings.ner_weight,
                settings.protected_weight,
                rehearsed_weight=1.0 if firmly or stage.balances else settings.rehearsed_weight,
                adapted=head,
                forgets=not plan.kept,
                distillation=distilled,
            ),
            source=self.source(stage),
            untrained=untrained,
            guard=self.guard if shared else None,
            constraint=self._constrain(stage) if shared else None,
            note=note if firmly else None,
        )

    def _lost_before(self, stage: Stage, untrained: FeatureSource) -> float:
        """Return what the old labels have lost on dev before a stage moves blocks; zero if nothing measures it."""
        if not stage.blocks or stage.follows is not None or self.floor is None:
            return 0.0
        now = self.yardstick.judges[1].score(self._plan.model, self._plan.labels, untrained)
        return 0.0 if now is None else self.floor - now.value

    def _untrained(self, stage: Stage) -> FeatureSource:
        """Choose the cheapest source that is true before a stage trains: what the base sees, while no block has moved."""
        return self._features.get if self.fits and not self._moved else self.source(stage)

    def _heads(self, stage: Stage) -> tuple[HeadName, ...]:
        """Return the heads whose answers a stage may change."""
        return HEADS if self._plan.moves_protected(stage) else (self._plan.job.head,)

    def _constrain(self, stage: Stage) -> NullSpaceConstraint | None:
        """Hold the blocks that a stage moves to where protected texts have no activations, if that is asked for."""
        model = self._plan.model
        moved = linear_names(model, model.path(stage.heads[0])[stage.of - stage.blocks :])
        known = {name: self._covariances[name] for name in moved if name in self._covariances}
        return constrain(model, known, self._plan.recipe.projection) if known else None

    def source(self, stage: Stage) -> FeatureSource:
        """Choose the cheapest source that a stage leaves true: what lies below the blocks that it moves."""
        if stage.follows is not None:
            return self._seen_after(stage, stage.follows)
        heads = self._heads(stage)
        if not stage.blocks and self.fits:
            return self._features.get
        return self._boundary(stage.of - stage.blocks, heads) or self._live(heads)

    def _seen_after(self, stage: Stage, trained: Stage) -> FeatureSource:
        """Return what a stage sees below whatever it moves, once another stage was *trained*; that is computed once if it fits."""
        below = self._seen_within(trained)
        if stage.blocks:
            return below
        if stage not in self._refits:
            self._refits = {stage: FeatureCache()}  # Those of a rung that was left are of no use any more.
            self._keep(self._refits[stage], below, *self._texts(stage))
        return self._refits[stage].get

    def _seen_within(self, trained: Stage) -> FeatureSource:
        """Return a source over what enters those of the blocks *trained* that move once more."""
        *_, upper = self._plan.follow_ups(trained)
        heads, depth, model = self._heads(upper), upper.of - upper.blocks, self._plan.model
        if not self.fits or not model.can_fork or not depth:
            return self._live(heads)
        if trained not in self._entering:
            pad_id = self._plan.encoder.settings.pad_id
            cache = PrefixCache(model, depth, pad_id, head=self._plan.job.head)
            self._entering = {trained: cache}
            mixed = self._plan.recipe.mixed_precision
            for bf16, encodings in zip((mixed, False), self._texts(upper), strict=True):
                for _ in cache.fill(encodings, rows=ROWS, bf16=bf16):
                    self._stop.check()
        return partial(self._entering[trained].features, heads=heads)

    def _texts(self, stage: Stage) -> tuple[list[Encoding], list[Encoding]]:
        """Return the texts that a stage teaches, and those by which it is judged."""
        pool = self._plan.pool(stage)
        taught = [target.encoding for target in (*pool.new, *pool.rehearsed)]
        watched = self._protected.encodings if self._protected and self._plan.moves_protected(stage) else ()
        return taught, [*(encoding for judge in self.yardstick.judges for encoding in judge.encodings), *watched]

    def _keep(
        self, cache: FeatureCache, source: FeatureSource, taught: Sequence[Encoding], judged: Sequence[Encoding]
    ) -> None:
        """Keep what a source gives of texts: of those that teach as training steps compute it, of those that judge in fp32."""
        for own, encodings in ((self._teaching(source), taught), (source, judged)):
            for _ in cache.fill(own, encodings, rows=ROWS):
                self._stop.check()

    def _teaching(self, source: FeatureSource) -> FeatureSource:
        """Return a source in the precision of training steps."""
        return in_mixed_precision(source) if self._plan.recipe.mixed_precision else source

    def _boundary(self, depth: int, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource | None:
        """Return a source over what enters the block at *depth*, which is computed once; None if nothing is gained."""
        model = self._plan.model
        if not self.fits or not model.can_fork or not 0 < depth <= model.fork_point or depth == len(model.blocks()):
            return None
        if depth not in self._boundaries:
            self._boundaries[depth] = PrefixCache(model, depth, self._plan.encoder.settings.pad_id)
            for _ in self._boundaries[depth].fill([*self._taught, *self._judged], rows=ROWS):
                self._stop.check()
        return partial(self._boundaries[depth].features, heads=heads)

    def _live(self, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource:
        return live(self._plan.model, self._plan.encoder.settings.pad_id, heads=heads)

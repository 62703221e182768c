"""Preparation of stages, with what they share: feature caches, the teacher, the guard and the dev evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HEADS, HeadName, other_head
from twofold_checkpoint.memory import balanced_sample
from twofold_checkpoint.protocol.job import Statistical

from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.datasets.batching import chunks
from twofold_trainer.datasets.splits import MEMORY_DEV
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

OLD_LABEL_DROP = 0.015
"""Dev-score drop of the old labels, before a stage trains blocks, above which they are rehearsed one to one at full weight:
two standard errors for 500 examples of which 3 % change."""


class StageFactory:
    """Makes the inputs of each stage of a job.

    The base model runs once over every text. The inputs of the first trained block and the features that the heads read
    are cached, so that the probe and the teacher need no backbone passes.
    """

    def __init__(self, plan: Plan, stop: StopSignal) -> None:
        self._plan = plan
        self._stop = stop
        job, head = plan.job, plan.job.head

        def make_scorer(examples: Sequence[Example], head: HeadName) -> Scorer:
            return Scorer(balanced_sample(examples, MEMORY_DEV, seed=job.seed), head, plan.encoder, stop)

        self.dev_evaluator = DevEvaluator(
            (make_scorer(plan.parts.dev, head), make_scorer(plan.memory.dev, head)), plan.labels
        )
        self._train_encodings: list[Encoding] = [target.encoding for target in (*plan.new, *plan.rehearsable)]
        self._eval_encodings = [encoding for scorer in self.dev_evaluator.scorers for encoding in scorer.encodings]
        self._moves_protected = any(map(plan.moves_protected, plan.candidate_stages))
        self._protected_scorer: Scorer | None = None
        if self._moves_protected and isinstance(plan.job.protection, Statistical) and plan.recipe.guard:
            self._protected_scorer = make_scorer(
                annotated_for(plan.protected("dev"), other_head(head)), other_head(head)
            )
            self._eval_encodings += self._protected_scorer.encodings
        self._features = FeatureCache()
        self._prefix_caches: dict[int, PrefixCache] = {}
        self._head_features: dict[Stage, FeatureCache] = {}
        self._upper_block_inputs: dict[Stage, PrefixCache] = {}
        self._blocks_have_moved = False
        self.caches_features = plan.keeps_features
        self._teacher: Teacher | None = None
        self._covariances: Covariances = {}
        self.guard: Guard | None = None
        self.baseline_dev_score: float | None = None
        """Dev score of the base on the old labels; None if there are no examples of them."""

    def precompute(self) -> None:
        """Run the base model over every text once, and set up the teacher, the guard and the baselines. Raises CancelledError."""
        plan, model = self._plan, self._plan.model
        if self.caches_features:
            self._cache_features(
                self._features,
                self._prefix_source(plan.frozen_depth()) or self._live(),
                self._train_encodings,
                self._eval_encodings,
            )
        source = self.base_features
        if not self.caches_features and plan.stages:
            # The teacher needs a separate copy, because training changes this model.
            source = live(load_model(plan.base), plan.encoder.settings.pad_id)
        self._teacher = Teacher(model, self._as_trained(source))
        self.guard = self._make_guard(source)
        baseline = self.dev_evaluator.scorers[1].score(model, plan.base.manifest.labels, source)
        self.baseline_dev_score = None if baseline is None else baseline.value
        if plan.recipe.projection and self._moves_protected:
            self._covariances = self._collect_covariances()

    def _make_guard(self, source: FeatureSource) -> Guard | None:
        """Return a guard with the base's protected score as baseline; None if it cannot change or cannot be measured."""
        labels, protection = self._plan.base.manifest.labels, self._plan.job.protection
        if self._protected_scorer is None or not isinstance(protection, Statistical):
            return None
        first = self._protected_scorer.score(self._plan.model, labels, source)
        if first is None:
            return None
        allowed = allowance(protection.margin, first.examples)
        return Guard(self._plan.model, self._protected_scorer, labels, first.value, allowed)

    def _collect_covariances(self) -> Covariances:
        """Return the covariances stored with the base, or collect them from the remembered protected texts."""
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
        """The base model's features of the job's texts."""
        return self._features.get if self.caches_features else self._live()

    def stage_inputs(self, stage: Stage) -> StageInputs:
        """Return the inputs of a stage. Call precompute() first, and call this in the order of the stages."""
        plan, head = self._plan, self._plan.job.head
        shared, untrained = plan.moves_protected(stage), self._untrained(stage)
        lost = self._old_label_drop(stage, untrained)
        firmly = lost > OLD_LABEL_DROP
        note = (
            f"The old labels lost {100 * lost:.1f} points on dev, so stage {stage.name} rehearses them at full weight."
        )
        assert self._teacher is not None, "stage_inputs() was called before precompute(). This is a bug."
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
        self._blocks_have_moved = self._blocks_have_moved or stage.blocks > 0
        return StageInputs(
            pool=plan.pool(stage, firmly=firmly),
            objective=Objective(
                self._heads(stage),
                settings.ner_weight,
                settings.protected_weight,
                rehearsed_weight=1.0 if firmly or stage.balances else settings.rehearsed_weight,
                adapted=head,
                forgets=not plan.retained_labels,
                distillation=distilled,
            ),
            source=self.source(stage),
            untrained=untrained,
            guard=self.guard if shared else None,
            constraint=self._make_constraint(stage) if shared else None,
            note=note if firmly else None,
        )

    def _old_label_drop(self, stage: Stage, untrained: FeatureSource) -> float:
        """Return the old labels' dev-score drop before a stage trains blocks; 0 if there is nothing to measure it by."""
        if not stage.blocks or stage.follows is not None or self.baseline_dev_score is None:
            return 0.0
        now = self.dev_evaluator.scorers[1].score(self._plan.model, self._plan.labels, untrained)
        return 0.0 if now is None else self.baseline_dev_score - now.value

    def _untrained(self, stage: Stage) -> FeatureSource:
        """Return the cheapest source that is valid before a stage trains: the base's features while no block has changed."""
        return self._features.get if self.caches_features and not self._blocks_have_moved else self.source(stage)

    def _heads(self, stage: Stage) -> tuple[HeadName, ...]:
        """Return the heads whose predictions a stage may change."""
        return HEADS if self._plan.moves_protected(stage) else (self._plan.job.head,)

    def _make_constraint(self, stage: Stage) -> NullSpaceConstraint | None:
        """Constrain the blocks of a stage to the null space of protected activations; None if there are no covariances."""
        model = self._plan.model
        moved = linear_names(model, model.path(stage.heads[0])[stage.of - stage.blocks :])
        known = {name: self._covariances[name] for name in moved if name in self._covariances}
        return constrain(model, known, self._plan.recipe.projection) if known else None

    def source(self, stage: Stage) -> FeatureSource:
        """Return the cheapest source that stays valid while a stage trains: it caches the layers below the trained blocks."""
        if stage.follows is not None:
            return self._refit_source(stage, stage.follows)
        heads = self._heads(stage)
        if not stage.blocks and self.caches_features:
            return self._features.get
        return self._prefix_source(stage.of - stage.blocks, heads) or self._live(heads)

    def _refit_source(self, stage: Stage, trained: Stage) -> FeatureSource:
        """Return the feature source of a refit stage after the stage *trained*; cached if the features fit in memory."""
        below = self._upper_block_source(trained)
        if stage.blocks:
            return below
        if stage not in self._head_features:
            self._head_features = {stage: FeatureCache()}  # Drops the cache of an abandoned stage.
            self._cache_features(self._head_features[stage], below, *self._train_and_eval_encodings(stage))
        return self._head_features[stage].get

    def _upper_block_source(self, trained: Stage) -> FeatureSource:
        """Return a source that caches the inputs of the upper blocks of *trained* that are trained once more."""
        *_, upper = self._plan.refit_stages(trained)
        heads, depth, model = self._heads(upper), upper.of - upper.blocks, self._plan.model
        if not self.caches_features or not model.can_fork or not depth:
            return self._live(heads)
        if trained not in self._upper_block_inputs:
            pad_id = self._plan.encoder.settings.pad_id
            cache = PrefixCache(model, depth, pad_id, head=self._plan.job.head)
            self._upper_block_inputs = {trained: cache}
            mixed = self._plan.recipe.mixed_precision
            for bf16, encodings in zip((mixed, False), self._train_and_eval_encodings(upper), strict=True):
                for _ in cache.fill(encodings, rows=ROWS, bf16=bf16):
                    self._stop.check()
        return partial(self._upper_block_inputs[trained].features, heads=heads)

    def _train_and_eval_encodings(self, stage: Stage) -> tuple[list[Encoding], list[Encoding]]:
        """Return the encodings that a stage trains on, and those that it is scored on."""
        pool = self._plan.pool(stage)
        train_encodings = [target.encoding for target in (*pool.new, *pool.rehearsed)]
        watched = (
            self._protected_scorer.encodings if self._protected_scorer and self._plan.moves_protected(stage) else ()
        )
        return train_encodings, [
            *(encoding for scorer in self.dev_evaluator.scorers for encoding in scorer.encodings),
            *watched,
        ]

    def _cache_features(
        self,
        cache: FeatureCache,
        source: FeatureSource,
        train_encodings: Sequence[Encoding],
        eval_encodings: Sequence[Encoding],
    ) -> None:
        """Fill a cache from a source: training texts in the precision of training steps, scored texts in fp32."""
        for own, encodings in ((self._as_trained(source), train_encodings), (source, eval_encodings)):
            for _ in cache.fill(own, encodings, rows=ROWS):
                self._stop.check()

    def _as_trained(self, source: FeatureSource) -> FeatureSource:
        """Return the source in the precision of training steps."""
        return in_mixed_precision(source) if self._plan.recipe.mixed_precision else source

    def _prefix_source(self, depth: int, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource | None:
        """Return a source that caches the inputs of the block at *depth*; None if caching gains nothing."""
        model = self._plan.model
        if (
            not self.caches_features
            or not model.can_fork
            or not 0 < depth <= model.fork_point
            or depth == len(model.blocks())
        ):
            return None
        if depth not in self._prefix_caches:
            self._prefix_caches[depth] = PrefixCache(model, depth, self._plan.encoder.settings.pad_id)
            for _ in self._prefix_caches[depth].fill([*self._train_encodings, *self._eval_encodings], rows=ROWS):
                self._stop.check()
        return partial(self._prefix_caches[depth].features, heads=heads)

    def _live(self, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource:
        return live(self._plan.model, self._plan.encoder.settings.pad_id, heads=heads)

"""Prepares each stage of a job: its data, objective, features, guard and constraint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName, other_head
from twofold_checkpoint.memory import balanced_sample
from twofold_checkpoint.protocol.job import Statistical

from twofold_trainer.datasets.batching import chunks
from twofold_trainer.datasets.splits import MEMORY_DEV
from twofold_trainer.modeling.features import FeatureSource, live
from twofold_trainer.modeling.model import load_model
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.protection.covariances import Covariances, collect_covariances, linear_names
from twofold_trainer.protection.guard import Guard, allowance
from twofold_trainer.protection.nullspace import NullSpaceConstraint, constrain
from twofold_trainer.protection.teacher import Teacher
from twofold_trainer.scoring.scorer import BATCH_SIZE, Scorer
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.dev_evaluator import DevEvaluator
from twofold_trainer.training.feature_store import FeatureStore
from twofold_trainer.training.objective import Distillation, Objective
from twofold_trainer.training.stage_inputs import StageInputs

OLD_LABEL_DROP = 0.015
"""Dev-score drop of the old labels, before a stage trains blocks, above which they are rehearsed one to one at full weight:
two standard errors for 500 examples of which 3 % change."""


@dataclass(slots=True)
class StageFactory:
    """Makes the inputs of each stage of a job, from what the stages share."""

    plan: Plan
    features: FeatureStore
    dev_evaluator: DevEvaluator
    """Scores the new examples first, then the old labels of the adapted head."""
    teacher: Teacher
    guard: Guard | None
    baseline_dev_score: float | None
    """Dev score of the base on the old labels; None if there are no examples of them."""
    covariances: Covariances
    """Covariances of protected activations; empty if updates are not constrained."""
    _blocks_have_moved: bool = False

    def inputs(self, stage: Stage) -> StageInputs:
        """Return the inputs of a stage. Call this in the order of the stages."""
        source = self.features.source(stage)
        untrained = self.features.base if self.features.is_caching and not self._blocks_have_moved else source
        drop = self._old_label_drop(stage, untrained)
        full_rehearsal = drop > OLD_LABEL_DROP
        note = f"The old labels' dev score fell by {100 * drop:.1f} points, so the next stage rehearses them at full weight."
        self._blocks_have_moved = self._blocks_have_moved or stage.blocks > 0
        return StageInputs(
            pool=stage.full_rehearsal_pool if full_rehearsal else stage.pool,
            objective=self._objective(stage, full_rehearsal=full_rehearsal),
            source=source,
            untrained=untrained,
            guard=self.guard if stage.moves_protected else None,
            constraint=self._constraint(stage) if stage.moves_protected else None,
            note=note if full_rehearsal else None,
        )

    def _objective(self, stage: Stage, *, full_rehearsal: bool) -> Objective:
        """Return the objective of a stage; *full_rehearsal* rehearses at full weight."""
        head, recipe = self.plan.request.head, self.plan.recipe
        rehearses = any(target.has_labels_for(head) for target in self.plan.rehearsed)
        return Objective(
            stage.affected_heads,
            recipe.ner_weight,
            recipe.protected_weight,
            rehearsed_weight=1.0 if full_rehearsal or stage.is_balanced_refit else recipe.rehearsed_weight,
            adapted=head,
            forgets=not self.plan.retained_labels,
            distillation=Distillation(
                self.teacher,
                protected=recipe.distillation,
                retained=recipe.retention,
                retained_on_new=0.0 if rehearses else recipe.retention,
                repair=recipe.repair,
                temperature=recipe.temperature,
            ),
        )

    def _old_label_drop(self, stage: Stage, untrained: FeatureSource) -> float:
        """Return the old labels' dev-score drop before a stage trains blocks; 0 if there is nothing to measure it by."""
        if not stage.blocks or stage.follows is not None or self.baseline_dev_score is None:
            return 0.0
        now = self.dev_evaluator.scorers[1].score(self.plan.model, self.plan.labels, untrained)
        return 0.0 if now is None else self.baseline_dev_score - now.value

    def _constraint(self, stage: Stage) -> NullSpaceConstraint | None:
        """Constrain the blocks of a stage to the null space of protected activations; None if there are no covariances."""
        model = self.plan.model
        moved = linear_names(model, model.path(stage.heads[0])[stage.frozen_blocks :])
        covariances = {name: self.covariances[name] for name in moved if name in self.covariances}
        return constrain(model, covariances, self.plan.recipe.projection) if covariances else None


def make_stage_factory(plan: Plan, stop: StopSignal) -> StageFactory:
    """Run the base model over every text once, and measure what the stages are compared with. Raises CancelledError."""
    head, protected, base_labels = plan.request.head, other_head(plan.request.head), plan.base.manifest.labels
    moves_protected = any(stage.moves_protected for stage in plan.all_stages)

    def make_scorer(examples: Sequence[Example], head: HeadName) -> Scorer:
        return Scorer(balanced_sample(examples, MEMORY_DEV, seed=plan.request.seed), head, plan.encoder, stop)

    dev_evaluator = DevEvaluator((make_scorer(plan.parts.dev, head), make_scorer(plan.memory.dev, head)), plan.labels)
    protected_scorer: Scorer | None = None
    if moves_protected and isinstance(plan.request.protection, Statistical) and plan.recipe.guard:
        protected_scorer = make_scorer(plan.protected_dev, protected)
    dev = [encoding for scorer in dev_evaluator.scorers for encoding in scorer.encodings]
    features = FeatureStore(plan, dev, protected_scorer.encodings if protected_scorer else (), stop)
    source = features.base
    if not features.is_caching and plan.stages:
        # The teacher needs a separate copy, because training changes this model.
        source = live(load_model(plan.base), plan.encoder.settings.pad_id)
    baseline = dev_evaluator.scorers[1].score(plan.model, base_labels, source)
    return StageFactory(
        plan=plan,
        features=features,
        dev_evaluator=dev_evaluator,
        teacher=Teacher(plan.model, features.in_training_precision(source)),
        guard=None if protected_scorer is None else _make_guard(plan, protected_scorer, source),
        baseline_dev_score=None if baseline is None else baseline.value,
        covariances=_covariances(plan) if plan.recipe.projection and moves_protected else {},
    )


def _make_guard(plan: Plan, scorer: Scorer, source: FeatureSource) -> Guard | None:
    """Return a guard with the base's protected score as baseline; None if it cannot be measured."""
    labels, protection = plan.base.manifest.labels, plan.request.protection
    baseline = scorer.score(plan.model, labels, source)
    if baseline is None or not isinstance(protection, Statistical):
        return None
    return Guard(plan.model, scorer, labels, baseline.value, allowance(protection.margin, baseline.examples))


def _covariances(plan: Plan) -> Covariances:
    """Return the covariances stored with the base, or collect them from the remembered protected texts."""
    if plan.statistics is not None:
        return plan.statistics
    protected = other_head(plan.request.head)
    encodings = [target.encoding for target in plan.rehearsed if target.has_labels_for(protected)]
    if not encodings:
        return {}
    return collect_covariances(
        plan.model, plan.model.blocks(), chunks(encodings, BATCH_SIZE), plan.encoder.settings.pad_id
    )

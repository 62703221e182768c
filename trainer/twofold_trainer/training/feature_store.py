"""The features of a job's texts, cached as far as the layers that compute them are frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.manifest import HEADS, HeadName

from twofold_trainer.modeling.features import FeatureCache, FeatureSource, fits_in_memory, live
from twofold_trainer.modeling.mixed_precision import in_mixed_precision
from twofold_trainer.modeling.prefix_cache import PrefixCache
from twofold_trainer.planning.plan import Plan
from twofold_trainer.planning.stage import Stage
from twofold_trainer.planning.stages import training_encodings
from twofold_trainer.scoring.scorer import BATCH_SIZE
from twofold_trainer.stop import StopSignal


class FeatureStore:
    """Where stages read the features of texts from.

    The base model runs once over every text. The inputs of the first trained block and the features that the heads read
    are cached, so that the probe and the teacher need no backbone passes. Refit stages cache the features of the blocks
    that the stage before them trained. If the features do not fit in memory, every source runs the whole model.
    """

    def __init__(self, plan: Plan, dev: Sequence[Encoding], protected: Sequence[Encoding], stop: StopSignal) -> None:
        """Run the base model over all training texts and the texts that are scored: *dev* and *protected*.

        Raises CancelledError.
        """
        self._model, self._pad_id, self._head = plan.model, plan.encoder.settings.pad_id, plan.request.head
        self._mixed_precision = plan.recipe.mixed_precision
        self._dev, self._protected = list(dev), list(protected)
        self._texts = training_encodings(plan.all_stages)
        self._stages, self._stop = plan.all_stages, stop
        self.is_caching = fits_in_memory(plan.feature_bytes)
        self._base = FeatureCache()
        self._prefixes: dict[int, PrefixCache] = {}
        self._refit_inputs: dict[Stage, PrefixCache] = {}
        self._refit_features: dict[Stage, FeatureCache] = {}
        if self.is_caching:
            frozen_blocks = min((stage.frozen_blocks for stage in self._stages), default=0)
            source = self._above_prefix(frozen_blocks) or self._live()
            self._fill(self._base, source, self._texts, [*self._dev, *self._protected])

    @property
    def base(self) -> FeatureSource:
        """The base model's features of the job's texts."""
        return self._base.get if self.is_caching else self._live()

    def source(self, stage: Stage) -> FeatureSource:
        """Return the cheapest source that stays valid while a stage trains: it caches the layers below the trained blocks."""
        if stage.follows is not None:
            return self._refit_source(stage, stage.follows)
        if not stage.blocks and self.is_caching:
            return self._base.get
        return self._above_prefix(stage.frozen_blocks, stage.affected_heads) or self._live(stage.affected_heads)

    def in_training_precision(self, source: FeatureSource) -> FeatureSource:
        """Return the source in the precision of training steps."""
        return in_mixed_precision(source) if self._mixed_precision else source

    def _refit_source(self, stage: Stage, trained: Stage) -> FeatureSource:
        """Return the source of a refit stage after the stage *trained*; it caches features for a stage that trains only the head."""
        below = self._below_refit(trained)
        if stage.blocks:
            return below
        if stage not in self._refit_features:
            self._refit_features = {stage: FeatureCache()}  # Drops the cache of an abandoned stage.
            self._fill(self._refit_features[stage], below, *self._texts_of(stage))
        return self._refit_features[stage].get

    def _below_refit(self, trained: Stage) -> FeatureSource:
        """Return a source that caches what enters the upper blocks of *trained*, which both of its refit stages read."""
        upper = next(refit for refit in self._stages if refit.follows is trained and refit.blocks)
        if not self.is_caching or not self._model.can_fork or not upper.frozen_blocks:
            return self._live(upper.affected_heads)
        if trained not in self._refit_inputs:
            cache = PrefixCache(self._model, upper.frozen_blocks, self._pad_id, head=self._head)
            self._refit_inputs = {trained: cache}
            for bf16, texts in zip((self._mixed_precision, False), self._texts_of(upper), strict=True):
                self._run(cache.fill(texts, rows=BATCH_SIZE, bf16=bf16))
        return partial(self._refit_inputs[trained].features, heads=upper.affected_heads)

    def _texts_of(self, stage: Stage) -> tuple[list[Encoding], list[Encoding]]:
        """Return the texts that a stage trains on, and those that it is scored on."""
        trained = [target.encoding for target in (*stage.pool.new, *stage.pool.rehearsed)]
        return trained, [*self._dev, *(self._protected if stage.moves_protected else ())]

    def _above_prefix(self, depth: int, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource | None:
        """Return a source that caches the inputs of the block at *depth*; None if caching gains nothing."""
        model = self._model
        if (
            not self.is_caching
            or not model.can_fork
            or not 0 < depth <= model.fork_point
            or depth == len(model.blocks())
        ):
            return None
        if depth not in self._prefixes:
            self._prefixes[depth] = PrefixCache(model, depth, self._pad_id)
            self._run(self._prefixes[depth].fill([*self._texts, *self._dev, *self._protected], rows=BATCH_SIZE))
        return partial(self._prefixes[depth].features, heads=heads)

    def _live(self, heads: tuple[HeadName, ...] = HEADS) -> FeatureSource:
        return live(self._model, self._pad_id, heads=heads)

    def _fill(
        self, cache: FeatureCache, source: FeatureSource, trained: Sequence[Encoding], scored: Sequence[Encoding]
    ) -> None:
        """Fill a cache: texts to train on in the precision of training steps, texts to score in fp32."""
        for precise, texts in ((self.in_training_precision(source), trained), (source, scored)):
            self._run(cache.fill(precise, texts, rows=BATCH_SIZE))

    def _run(self, filling: Iterable[int]) -> None:
        for _ in filling:
            self._stop.check()

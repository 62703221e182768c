"""The training of a job: cache what stays, grow the head, climb the stages under guard."""

from __future__ import annotations

from collections.abc import Generator

from twofold_checkpoint.events import Event, PhaseStarted
from twofold_checkpoint.job import Statistical
from twofold_checkpoint.manifest import other
from twofold_checkpoint.memory import balanced_sample

from twofold_trainer import recipe
from twofold_trainer.climb import Breach, Climbed, climb
from twofold_trainer.features import FeatureCache, cache_bytes
from twofold_trainer.figures import measured
from twofold_trainer.growth import class_means, grow_head
from twofold_trainer.loop import Yardstick
from twofold_trainer.model import TwofoldModel
from twofold_trainer.plan import Plan
from twofold_trainer.scoring import ROWS, Judge
from twofold_trainer.stop import Stop


def train(plan: Plan, stop: Stop) -> Generator[Event, None, Climbed]:
    """Cache what the frozen backbone sees, grow the adapted head, and climb the stages."""
    job, model, pad_id = plan.job, plan.model, plan.encoder.settings.pad_id
    dev = [
        Judge(balanced_sample(examples, recipe.MEMORY_DEV, seed=job.seed), job.head, plan.encoder, stop)
        for examples in (plan.parts.dev, plan.memory.dev)
    ]
    yardstick = Yardstick(tuple(dev), plan.labels)
    yield PhaseStarted(phase="cache")
    pool = plan.pool(plan.stages[0])
    encodings = [target.encoding for target in (*pool.new, *pool.rehearsed)]
    encodings += [encoding for one in dev for encoding in one.encodings]
    hidden_size = plan.base.manifest.hidden_size
    fits = cache_bytes(encodings, hidden_size) <= recipe.CACHE_BYTES
    sampled = plan.new if fits else plan.new[: recipe.SAMPLED]
    cache = FeatureCache()
    for _ in cache.fill(model, encodings if fits else [one.encoding for one in sampled], pad_id, rows=ROWS):
        stop.check()
    if plan.added:
        old, new = model.head(job.head).out_features, len(plan.added) * (1 if job.head == "classifier" else 2)
        seen = ((target, cache.get([target.encoding])) for target in sampled)
        grow_head(model, job.head, *class_means(seen, job.head, range(old, old + new), hidden_size))
    return (
        yield from climb(
            model,
            plan.stages,
            plan.recipe,
            plan.pool,
            yardstick,
            pad_id=pad_id,
            seed=job.seed,
            stop=stop,
            cache=cache if fits else None,
            breach=_breach(plan, stop) if job.freeze == "auto" else None,
        )
    )


def _breach(plan: Plan, stop: Stop) -> Breach | None:
    """Return the guard of AUTO: a rung may not cost the protected task more on dev than its margin."""
    head = other(plan.job.head)
    guard = Judge(plan.memory.dev, head, plan.encoder, stop)
    first = guard.score(plan.model, plan.labels)
    if first is None or not isinstance(plan.job.protection, Statistical):
        return None
    margin = plan.job.protection.margin

    def look(model: TwofoldModel) -> Generator[Event, None, str | None]:
        now = guard.score(model, plan.labels)
        assert now is not None
        yield measured(now, "protected", "during")
        fallen = 100 * (first.value - now.value)
        if fallen <= margin + 1e-6:
            return None
        return f"it cost the protected task {fallen:.1f} points on dev, more than the margin of {margin:g}"

    return look

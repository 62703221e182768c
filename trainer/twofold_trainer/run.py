"""The whole story of one adaptation, from the job to its last word."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator

from safetensors.torch import load_file
from twofold_checkpoint.checkpoint import TRAINING_WEIGHTS
from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.events import Event, Finished, Judged, Moment, PhaseStarted, Published, ScoreMeasured
from twofold_checkpoint.job import Job, Statistical
from twofold_checkpoint.manifest import Score, other
from twofold_checkpoint.memory import balanced_sample
from twofold_checkpoint.store import Store

from twofold_trainer import recipe
from twofold_trainer.climb import Breach, Climbed, climb
from twofold_trainer.errors import CancelledError, TrainerError
from twofold_trainer.features import FeatureCache, cache_bytes
from twofold_trainer.freezing import prove_frozen
from twofold_trainer.gate import Pair, judge
from twofold_trainer.growth import class_means, grow_head
from twofold_trainer.loop import Yardstick
from twofold_trainer.metrics import HeadScore, accuracy, span_f1
from twofold_trainer.model import TwofoldModel
from twofold_trainer.plan import Plan, make_plan
from twofold_trainer.publish import Candidate, provenance, publish, write_candidate
from twofold_trainer.scoring import ROWS, Judge
from twofold_trainer.splits import remember
from twofold_trainer.stop import Stop

log = logging.getLogger(__name__)


def fine_tune(job: Job, stop: Stop | None = None) -> Iterator[Event]:
    """Run a job and yield its events; the last one is always Finished. Nothing is published but a judged candidate."""
    try:
        yield from _adapt(job, stop or Stop())
    except CancelledError as cancelled:
        yield Finished(outcome="cancelled", reason=f"{cancelled}.")
    except (TrainerError, CheckpointError) as error:
        log.exception("the job failed")
        yield Finished(outcome="failed", reason=f"{error}.")
    except MemoryError:
        log.exception("the job failed")
        yield Finished(outcome="failed", reason="the trainer ran out of memory; use a smaller batch_size.")
    except Exception as error:
        log.exception("the job failed")
        yield Finished(outcome="failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}.")


def _adapt(job: Job, stop: Stop) -> Iterator[Event]:
    stop.limit(job.max_runtime)
    yield PhaseStarted(phase="validate")
    plan = make_plan(job)
    yield from plan.events()
    if job.validate_only:
        yield Finished(outcome="succeeded", reason=f"The job is valid. {plan.sentence()}")
        return

    yield PhaseStarted(phase="baseline")
    figures = _Figures(plan, stop)
    before = yield from figures.measure(plan.model, "before")
    if job.freeze == "all":
        told = ", ".join(f"{name} {100 * score.value:.1f}" for name, score in before.items() if score)
        yield Finished(outcome="succeeded", reason=f"Nothing was trained; measured on held-out examples: {told}.")
        return

    climbed = yield from _train(plan, stop)

    yield PhaseStarted(phase="evaluate")
    trained = {*climbed.names, *(name for name, _ in plan.model.head(job.head).named_parameters(prefix=job.head))}
    yield prove_frozen(load_file(plan.base.path / TRAINING_WEIGHTS), plan.model.state_dict(), trained)
    after = yield from figures.measure(plan.model, "after")

    store = Store(job.store)
    candidate = _candidate(plan, climbed, after)
    with store.staging() as staged:
        texts = [example.text for example in (*plan.parts.gate, *plan.parts.dev, *plan.parts.train)]
        yield from write_candidate(candidate, staged, texts, stop)

        yield PhaseStarted(phase="gate")
        pairs = {name: Pair(before[name], after[name]) for name in before}
        margin = job.protection.margin if isinstance(job.protection, Statistical) else 0.0
        verdict = judge(**pairs, margin=margin, trained=bool(climbed.kept))
        yield Judged(verdict=verdict.verdict, reason=f"{verdict.reason}.")
        story = f"{verdict.reason}; training ended because {climbed.reason}."
        if verdict.verdict != "pass":
            yield Finished(outcome="rejected", reason=f"Not published: {story}")
            return
        stop.check()
        checkpoint = publish(candidate, staged, store)
    yield Published(checkpoint_id=checkpoint.id)
    yield Finished(outcome="succeeded", reason=f"Published {checkpoint.id}: {story}")


def _train(plan: Plan, stop: Stop) -> Generator[Event, None, Climbed]:
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
        yield _measured(now, "protected", "during")
        fallen = 100 * (first.value - now.value)
        if fallen <= margin + 1e-6:
            return None
        return f"it cost the protected task {fallen:.1f} points on dev, more than the margin of {margin:g}"

    return look


class _Figures:
    """Hold the three judges of a job: of the protected task, of the adapted head's old labels, of the new data."""

    def __init__(self, plan: Plan, stop: Stop) -> None:
        head = plan.job.head
        self._judges = {
            "protected": Judge(plan.memory.gate, other(head), plan.encoder, stop),
            "retained": Judge(plan.memory.gate, head, plan.encoder, stop),
            "new": Judge(plan.parts.gate, head, plan.encoder, stop),
        }
        self._labels = {"before": plan.base.manifest.labels, "after": plan.labels}

    def measure(self, model: TwofoldModel, moment: Moment) -> Generator[Event, None, dict[str, HeadScore | None]]:
        """Score the model and say so."""
        scores: dict[str, HeadScore | None] = {}
        for figure, one in self._judges.items():
            score = scores[figure] = one.score(model, self._labels[moment])
            if score is not None:
                yield _measured(score, figure, moment)
        return scores


def _measured(score: HeadScore, figure: str, moment: Moment) -> ScoreMeasured:
    return ScoreMeasured(
        figure=figure,  # type: ignore[arg-type]
        moment=moment,
        metric=score.metric,
        value=score.value,
        examples=score.examples,
    )


def _candidate(plan: Plan, climbed: Climbed, after: dict[str, HeadScore | None]) -> Candidate:
    job, manifest = plan.job, plan.base.manifest
    stages = " + ".join(trained.stage.name for trained in climbed.kept)
    return Candidate(
        model=plan.model,
        tokenizer=plan.base.tokenizer(),
        settings=manifest.encoder,
        labels=plan.labels,
        memory=remember(plan.memory, plan.parts, seed=job.seed),
        backbone=manifest.backbone,
        pooling=manifest.pooling,
        provenance=provenance(job.seed, plan.parts.train, plan.recipe, head=job.head, freeze=job.freeze, kept=stages),
        scores=_scores(after),
        parent=plan.base.id,
        job_id=job.id,
    )


def _scores(after: dict[str, HeadScore | None]) -> tuple[Score, ...]:
    """Put the candidate's figures into one for each head, on all held-out examples that it was judged on."""
    joined: dict[str, list[HeadScore]] = {}
    for score in after.values():
        if score is not None:
            joined.setdefault(score.head, []).append(score)
    found = []
    for head, scores in joined.items():
        outcomes = [outcome for score in scores for outcome in score.outcomes]
        whole = accuracy(outcomes) if head == "classifier" else span_f1(outcomes)  # type: ignore[arg-type]
        assert whole is not None
        found.append(whole.as_score())
    return tuple(found)

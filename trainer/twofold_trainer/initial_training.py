"""Initial training: both heads, from a pretrained backbone, into the first checkpoint."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import torch
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS, MemoryMode, Score
from twofold_checkpoint.memory import Memory, balanced_sample
from twofold_checkpoint.protocol.events import (
    Event,
    Finished,
    PhaseStarted,
    PlanMade,
)
from twofold_checkpoint.protocol.job import Hyperparameters
from twofold_checkpoint.store import Store

from twofold_trainer import recipe
from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.datasets.readers import read_source
from twofold_trainer.datasets.splits import MEMORY_DEV, Parts, describe_dataset, split, types_of, with_annotated_types
from twofold_trainer.datasets.targets import describe_unaligned, make_targets, note_unaligned
from twofold_trainer.errors import RefusedError
from twofold_trainer.evaluation.evaluator import measured
from twofold_trainer.export.memory import update_memory
from twofold_trainer.export.publish import Candidate, provenance, publish_candidate
from twofold_trainer.modeling.backbone import DEFAULT, load_backbone
from twofold_trainer.modeling.features import FeatureCache, cache_bytes, fits_in_memory, live
from twofold_trainer.modeling.mixed_precision import has_bf16
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.planning.stage import Stage
from twofold_trainer.planning.validation import check_hyperparameters, check_seed
from twofold_trainer.scoring.scorer import BATCH_SIZE, Scorer
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.dev_evaluator import DevEvaluator
from twofold_trainer.training.loop import StageRunner
from twofold_trainer.training.objective import Objective
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.stages import train_stages

HELD_OUT_SHARE = 0.1
"""Held-out share of the initial training."""


def train_initial_checkpoint(
    *,
    train: str | Sequence[str],
    out: str,
    dev: str | None = None,
    backbone: str = DEFAULT,
    seed: int = 0,
    hyperparameters: Hyperparameters | None = None,
    memory: MemoryMode = "examples",
    stop: StopSignal | None = None,
) -> Iterator[Event]:
    """Train both heads, publish the checkpoint, and make it current if the store has none.

    Raises TrainerError or CheckpointError; unlike run_job it does not turn errors into events.
    """
    stop = stop or StopSignal()
    yield PhaseStarted(phase="validate")
    requested = hyperparameters or Hyperparameters()
    check_hyperparameters(requested)
    check_seed(seed)
    parts, labels = _read([train] if isinstance(train, str) else train, dev)
    loaded = load_backbone(backbone)
    encoder = Encoder(loaded.tokenizer, loaded.settings)
    targets = make_targets(parts.train, encoder, labels)
    unaligned = describe_unaligned([*targets, *make_targets([*parts.dev, *parts.gate], encoder, labels)])
    yield describe_dataset(parts, targets, unaligned[0])
    if unaligned[0]:
        yield note_unaligned(unaligned)

    torch.manual_seed(seed)  # Seeds the initial weights of the heads.
    model = TwofoldModel(loaded.module, labels, loaded.pooling).eval()
    blocks = len(model.blocks())
    default = recipe.init_recipe(
        blocks=blocks, examples=len(parts.train), hidden_size=model.config.hidden_size, bf16=has_bf16()
    )
    resolved = recipe.apply_hyperparameters(requested, default, blocks=blocks)
    pool = TrainingPool(tuple(targets))
    stages = [
        Stage(HEADS, trained_blocks, blocks, resolved, pool, number)
        for number, trained_blocks in enumerate(sorted({0, min(2, resolved.unfrozen_blocks), resolved.unfrozen_blocks}))
    ]
    names = ", ".join(stage.name for stage in stages)
    plan = f"Train {loaded.name} on {len(parts.train)} examples. Stages: {names}."
    yield PlanMade(plan=plan, hyperparameters=recipe.to_hyperparameters(resolved))

    yield PhaseStarted(phase="cache")
    sampled = balanced_sample(parts.dev, MEMORY_DEV, seed=seed)
    dev_evaluator = DevEvaluator(tuple(Scorer(sampled, head, encoder) for head in HEADS), labels)
    encodings = [target.encoding for target in targets]
    encodings += [encoding for scorer in dev_evaluator.scorers for encoding in scorer.encodings]
    fits = fits_in_memory(cache_bytes(encodings, model.config.hidden_size))
    cache = FeatureCache()
    backbone_source = live(model, loaded.settings.pad_id)
    for _ in cache.fill(backbone_source, encodings if fits else [], rows=BATCH_SIZE):
        stop.check()

    def make_inputs(stage: Stage) -> StageInputs:
        source = cache.get if fits and not stage.blocks else backbone_source
        return StageInputs(pool, Objective(ner_weight=resolved.ner_weight), source)

    stages_result = yield from train_stages(StageRunner(model, dev_evaluator, seed, stop), stages, make_inputs)

    yield PhaseStarted(phase="evaluate")
    scores = yield from _evaluate(model, parts, encoder, labels)
    stage_names = " + ".join(trained.stage.name for trained in stages_result.completed_stages)
    candidate = Candidate(
        model=model,
        tokenizer=loaded.tokenizer,
        settings=loaded.settings,
        labels=labels,
        kept=update_memory(memory, model, encoder, memory=Memory(), parts=parts, seed=seed),
        backbone=loaded.name,
        pooling=loaded.pooling,
        provenance=provenance(seed, parts.train, resolved, stages=stage_names),
        scores=scores,
    )
    store = Store(Path(out)).create()
    checkpoint, _ = yield from publish_candidate(candidate, store, parts, Memory(), stop)
    first = store.aliases().current is None
    if first:
        store.promote(checkpoint.id, approve=True)
    yield _finished(checkpoint.id, scores, first=first)


def _finished(checkpoint_id: str, scores: tuple[Score, ...], *, first: bool) -> Finished:
    figures = ", ".join(f"{score.metric} {100 * score.value:.1f}" for score in scores)
    role = "the store's current checkpoint" if first else "not current: the store already has a current checkpoint"
    return Finished(outcome="succeeded", reason=f"Published {checkpoint_id} ({figures}), {role}.")


def _read(train: Sequence[str], dev: str | None) -> tuple[Parts, LabelSet]:
    """Read, check and split the examples, and collect their labels and entity types."""
    examples = [example for source in train for example in read_source(source)]
    held_out = None if dev is None else read_source(dev)
    everything = [*examples, *(held_out or ())]
    labels = LabelSet(labels=(), entity_types=()).append(
        labels=(example.label for example in everything if example.label is not None), entity_types=types_of(everything)
    )
    # Only --train counts: labels that only --dev has would be scored but never trained.
    if all(example.label is None for example in examples):
        fix = 'add "label": "X" in JSON lines, or a line "# label: X" before a text of a CoNLL file'
        raise RefusedError(f"{', '.join(train)}: no example has a label, which the classifier needs; {fix}")
    if not types_of(examples):
        fix = 'add "entities": [{"start", "end", "type"}] in JSON lines, or B-TYPE in a CoNLL file'
        raise RefusedError(f"{', '.join(train)}: no example has an entity, which the NER head needs; {fix}")
    types = labels.entity_types
    examples = with_annotated_types(examples, types)
    held_out = None if held_out is None else with_annotated_types(held_out, types)
    return split(examples, held_out, Memory(), held_out=HELD_OUT_SHARE), labels


def _evaluate(
    model: TwofoldModel, parts: Parts, encoder: Encoder, labels: LabelSet
) -> Generator[Event, None, tuple[Score, ...]]:
    """Score both heads on the gate examples."""
    scores = []
    for head in HEADS:
        if (score := Scorer(parts.gate, head, encoder).score(model, labels)) is not None:
            scores.append(score.as_score())
            yield measured(score, "new", "after")
    return tuple(scores)

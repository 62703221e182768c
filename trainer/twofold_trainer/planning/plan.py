"""The plan of a job: checked settings, examples, labels, recipe and stages. Bad jobs are refused before any training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from twofold_checkpoint.checkpoint import MEMORY, STATISTICS, Checkpoint
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.errors import CheckpointNotFoundError
from twofold_checkpoint.examples import Example
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import MemoryMode, other_head
from twofold_checkpoint.memory import Memory, normalize_text, read_memory
from twofold_checkpoint.protocol.events import Event, NoteAdded, PlanMade
from twofold_checkpoint.protocol.job import Exact, TrainerJob
from twofold_checkpoint.store import Store

from twofold_trainer import recipe
from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.datasets.job_examples import read_job_examples
from twofold_trainer.datasets.label_growth import extend_labels, head_labels
from twofold_trainer.datasets.splits import Parts, describe_dataset, forget, split, types_of
from twofold_trainer.datasets.targets import Target, describe_unaligned, make_targets, note_unaligned
from twofold_trainer.errors import RefusedError
from twofold_trainer.modeling.features import CACHE_BYTES, cache_bytes
from twofold_trainer.modeling.mixed_precision import has_bf16
from twofold_trainer.modeling.model import TwofoldModel, load_model
from twofold_trainer.planning.stage import Stage
from twofold_trainer.planning.validation import check_settings
from twofold_trainer.protection.covariances import Covariances, load_covariances
from twofold_trainer.recipe import Recipe
from twofold_trainer.scoring.noninferiority import EXPECTED_FLIPS, provable_margin

HELD_OUT_SHARE = 0.2
"""Share of the training examples that is held out if a job has no dev examples: half for dev, half for the gate."""
MAX_NAMES = 5
"""Largest number of names in a note."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked job: what to train, on which examples, from which base."""

    job: TrainerJob
    base: Checkpoint
    model: TwofoldModel
    encoder: Encoder
    memory: Memory
    statistics: Covariances | None
    """Covariances of the base's activations, if its memory mode is "statistics"."""
    parts: Parts
    labels: LabelSet
    new: tuple[Target, ...]
    rehearsed: tuple[Target, ...]
    unaligned: tuple[int, str]
    recipe: Recipe
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]

    @property
    def remembers(self) -> MemoryMode:
        """Memory mode of the candidate."""
        return self.job.memory or self.base.manifest.memory

    @property
    def added(self) -> tuple[str, ...]:
        """New labels or entity types of the adapted head."""
        return head_labels(self.labels, self.job.head)[self.retained_labels :]

    @property
    def retained_labels(self) -> int:
        """Number of old labels or entity types that the adapted head keeps: all, or 0 if they are replaced."""
        replaced = self.job.label_policy == "replace"
        return 0 if replaced else len(head_labels(self.base.manifest.labels, self.job.head))

    @property
    def unscored(self) -> tuple[str, ...]:
        """Added labels or types without a held-out example, which no score covers."""
        held_out = [*self.parts.dev, *self.parts.gate]
        judged = {example.label for example in held_out} if self.job.head == "classifier" else {*types_of(held_out)}
        return tuple(name for name in self.added if name not in judged)

    def protected(self, part: Literal["dev", "gate"]) -> tuple[Example, ...]:
        """Return the examples that measure the protected head: the memory, plus the job's held-out examples of other texts."""
        remembered: tuple[Example, ...] = getattr(self.memory, part)
        texts = {normalize_text(example.text) for example in remembered}
        own: tuple[Example, ...] = getattr(self.parts, part)
        return (*remembered, *(example for example in own if normalize_text(example.text) not in texts))

    def moves_protected(self, stage: Stage) -> bool:
        """Tell whether a stage trains blocks that the protected head reads as well."""
        own = 0 if self.model.branch is None else len(self.model.branch)
        return stage.blocks > own and not stage.forked

    def pool(self, stage: Stage, *, firmly: bool = False) -> TrainingPool:
        """Return the training pool of a stage. Only a stage that trains shared blocks rehearses the protected head too.

        With *firmly*, a fork rehearses at the ratio of shared blocks.
        """
        rehearsed = self.rehearsed
        if not self.moves_protected(stage):
            rehearsed = tuple(target for target in rehearsed if target.teaches(self.job.head))
        half = stage.forked and not firmly
        ratio = self.recipe.fork_rehearsal_ratio if half else self.recipe.rehearsal_ratio
        if stage.follows is not None and self.job.hyperparameters.rehearsal_ratio is None:
            ratio = len(rehearsed) / len(self.new)  # Features are cached, so rehearsing everything is cheap.
        return TrainingPool(self.new, rehearsed, ratio)

    def refit_stages(self, stage: Stage) -> tuple[Stage, ...]:
        """Return the refit stages after a stage that trains blocks; none for freeze mode "staged".

        The first trains the head once more on the learned features, like the classifier of Kang et al. 2020
        (arXiv:1910.09217). It needs cached features, because it would otherwise run every text six more times. The second
        trains the head and the upper half of the blocks on all new and remembered texts: the balanced fine-tuning of
        Castro et al. 2018 (arXiv:1807.09536). Both need rehearsal, except that a fork always gets the second.
        """
        if not stage.blocks or self.job.freeze == "staged":
            return ()
        head = Stage((self.job.head,), 0, stage.of, follows=stage)
        upper = replace(stage, blocks=stage.blocks - stage.blocks // 2, follows=stage)
        rehearses = bool(self.pool(head).drawn)
        wanted = {head: rehearses and self.keeps_features, upper: rehearses or stage.forked}
        return tuple(stage for stage, is_wanted in wanted.items() if is_wanted)

    @property
    def rehearsable(self) -> tuple[Target, ...]:
        """The largest set of remembered texts that a stage may rehearse: all, or those annotated for the adapted head."""
        return max((self.pool(stage).rehearsed for stage in self.candidate_stages), key=len, default=())

    @property
    def feature_bytes(self) -> int:
        """Size in bytes of one set of features of all training texts."""
        encodings = [target.encoding for target in (*self.new, *self.rehearsable)]
        return cache_bytes(encodings, self.base.manifest.hidden_size)

    @property
    def keeps_features(self) -> bool:
        """Whether features fit in memory, so that frozen layers run once per text."""
        return self.feature_bytes <= CACHE_BYTES

    @property
    def shared(self) -> Stage:
        """The stage in which freeze mode "auto" trains shared blocks."""
        blocks = len(self.model.blocks())
        return Stage((self.job.head,), min(self.recipe.unfrozen_blocks, blocks), blocks)

    @property
    def forked(self) -> Stage:
        """The stage in which freeze mode "auto" trains a fork: the adapted head's copies of the top blocks."""
        blocks, branch = len(self.model.blocks()), self.base.manifest.branch
        own = self.recipe.fork_blocks if branch is None else branch.blocks
        return Stage((self.job.head,), min(own, blocks), blocks, forked=True)

    def shared_backbone_blocker(self) -> str | None:
        """Return why freeze mode "auto" skips the shared backbone; None if its protection can be proven."""
        if isinstance(self.job.protection, Exact):
            return "protection is exact"
        if self.base.manifest.branch is not None:
            return "the heads are already forked"
        examples = len(annotated_for(self.protected("gate"), other_head(self.job.head)))
        if not examples:
            return "there are no remembered or given examples to measure the protected task on"
        provable = 100 * provable_margin(examples, EXPECTED_FLIPS)
        if provable > self.job.protection.margin:
            return f"on {examples} examples no margin under {provable:.1f} points can be proven for a shared backbone"
        return None

    @property
    def candidate_stages(self) -> tuple[Stage, ...]:
        """Every stage that may run, whichever of the earlier ones succeed; without refit stages."""
        if self.job.freeze != "auto":
            return self.stages
        return (*self.stages, *(() if self.shared_backbone_blocker() else (self.shared,)), self.forked)

    def frozen_depth(self) -> int:
        """Return the number of bottom blocks that no stage of the plan trains."""
        return min((stage.of - stage.blocks for stage in self.candidate_stages), default=0)

    def approved_checkpoint(self) -> Checkpoint | None:
        """Return the last checkpoint that a person approved, unless it is the base or has been deleted."""
        store = Store(self.job.store)
        name = store.aliases().approved
        if name is None or name == self.base.id:
            return None
        try:
            return store.get(name)
        except CheckpointNotFoundError:
            return None

    def events(self) -> Iterator[Event]:
        """Yield the description of the data set, notes, and the plan."""
        counted = describe_dataset(self.parts, self.new, self.unaligned[0], self.job.head)
        yield counted
        for note in self.notes:
            yield NoteAdded(message=note)
        if self.unaligned[0]:
            yield note_unaligned(self.unaligned)
        if self.unscored:
            first, more = ", ".join(self.unscored[:MAX_NAMES]), len(self.unscored) - MAX_NAMES
            names = f"{first} and {more} others" if more > 0 else first
            message = f"No held-out example has {names}, so no score measures whether it was learned; add dev examples."
            yield NoteAdded(message=message, warning=True)
        yield PlanMade(
            plan=self.summary(), hyperparameters=recipe.to_hyperparameters(self.recipe), added_labels=self.added
        )

    def summary(self) -> str:
        """Return one sentence that says what the trainer will do."""
        data = f"{len(self.parts.train)} new examples"
        if not self.stages:
            return f"Measure {self.base.id} on {len(self.parts.gate)} of the given examples and train nothing."
        names = ", then ".join(stage.name for stage in self.stages)
        if self.job.freeze == "auto":
            why = self.shared_backbone_blocker()
            names += f", then {self.shared.name} under guard" if why is None else f", then {self.forked.name}"
        after = self.refit_stages(self.candidate_stages[-1])
        names += "".join(f", then {stage.name}" for stage in after)
        rehearsed = max(self.pool(stage, firmly=True).drawn for stage in (*self.candidate_stages, *after))
        return (
            f"Adapt the {self.job.head} head of {self.base.id} to {data} and up to {rehearsed} rehearsed ones an epoch; "
            f"train {names}; add {len(self.added)} names."
        )


def make_plan(job: TrainerJob) -> Plan:
    """Check a job and plan it. Raises RefusedError, ExampleError or another CheckpointError that says what to change."""
    check_settings(job)
    base = Store(job.store).get(job.base)
    base.verify()
    memory = read_memory(base.path / MEMORY)
    if job.label_policy == "replace":
        memory = forget(memory, job.head)
    train, dev, notes = read_job_examples(job, base.manifest.labels)
    parts = split(train, dev, memory, held_out=HELD_OUT_SHARE)
    if parts.moved:
        notes.append(
            f"{parts.moved} examples stay in the split that already has their text, so that the splits remain disjoint."
        )
    if not parts.train:
        raise RefusedError(
            "no training examples remain: the checkpoint holds out every text; add examples of other texts"
        )
    labels = extend_labels(job, base.manifest.labels, [*parts.train, *parts.dev, *parts.gate])
    model, encoder = load_model(base), base.encoder()
    blocks = len(model.blocks())
    remembers = base.manifest.memory
    default = recipe.default_recipe(
        job.freeze,
        job.head,
        blocks=blocks,
        examples=len(parts.train),
        hidden_size=base.manifest.hidden_size,
        remembers=remembers,
        bf16=has_bf16(),
    )
    resolved = recipe.merge(job.hyperparameters, default, blocks=blocks)
    blocks_per_stage = recipe.blocks_per_stage(job.freeze, blocks=blocks, unfrozen=resolved.unfrozen_blocks)
    new = make_targets(parts.train, encoder, labels, teaches=(job.head,))
    held_out = make_targets([*parts.dev, *parts.gate], encoder, labels, teaches=(job.head,))
    return Plan(
        job=job,
        base=base,
        model=model,
        encoder=encoder,
        memory=memory,
        statistics=load_covariances(base.path / STATISTICS) if remembers == "statistics" else None,
        parts=parts,
        labels=labels,
        new=tuple(new),
        rehearsed=tuple(make_targets(memory.rehearsal, encoder, labels, rehearsed=True)),
        unaligned=describe_unaligned([*new, *held_out]),
        recipe=resolved,
        stages=tuple(Stage((job.head,), trained_blocks, blocks) for trained_blocks in blocks_per_stage),
        notes=tuple(notes),
    )

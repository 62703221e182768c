"""From a job to everything that it needs, or to a refusal before any training."""

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
from twofold_checkpoint.protocol.job import Exact, Job
from twofold_checkpoint.store import Store

from twofold_trainer import recipe
from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.datasets.job_examples import read_job_examples
from twofold_trainer.datasets.label_growth import extend_labels, head_labels
from twofold_trainer.datasets.splits import Parts, describe_dataset, forget, split, types_of
from twofold_trainer.datasets.targets import Target, describe_unaligned, make_targets, note_unaligned
from twofold_trainer.errors import RefusedError
from twofold_trainer.modeling.features import cache_bytes
from twofold_trainer.modeling.mixed_precision import has_bf16
from twofold_trainer.modeling.model import TwofoldModel, load_model
from twofold_trainer.planning.stage import Stage
from twofold_trainer.planning.validation import check_settings
from twofold_trainer.protection.covariances import Covariances, load_covariances
from twofold_trainer.recipe import Recipe
from twofold_trainer.scoring.noninferiority import provable_margin

SHOWN = 5
"""Names that a note has at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold a checked job: what to train, on what, from what."""

    job: Job
    base: Checkpoint
    model: TwofoldModel
    encoder: Encoder
    memory: Memory
    statistics: Covariances | None
    """What the base remembers of its activations, where it remembers no texts."""
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
        """What the candidate will carry of what it has learnt from."""
        return self.job.memory or self.base.manifest.memory

    @property
    def added(self) -> tuple[str, ...]:
        """Labels or types that the adapted head gets."""
        return head_labels(self.labels, self.job.head)[self.kept :]

    @property
    def kept(self) -> int:
        """How many of its old labels or types the adapted head keeps: all, or none."""
        replaced = self.job.label_policy == "replace"
        return 0 if replaced else len(head_labels(self.base.manifest.labels, self.job.head))

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Those of them that no held-out example has: whatever becomes of them, no figure says it."""
        held_out = [*self.parts.dev, *self.parts.gate]
        judged = {example.label for example in held_out} if self.job.head == "classifier" else {*types_of(held_out)}
        return tuple(name for name in self.added if name not in judged)

    def protected(self, part: Literal["dev", "gate"]) -> tuple[Example, ...]:
        """Return what tells how the protected head does: what is remembered, and what the job's held-out examples say."""
        remembered: tuple[Example, ...] = getattr(self.memory, part)
        texts = {normalize_text(example.text) for example in remembered}
        own: tuple[Example, ...] = getattr(self.parts, part)
        return (*remembered, *(example for example in own if normalize_text(example.text) not in texts))

    def moves_protected(self, stage: Stage) -> bool:
        """Tell whether a stage moves blocks that the protected head reads, too."""
        own = 0 if self.model.branch is None else len(self.model.branch)
        return stage.blocks > own and not stage.forked

    def pool(self, stage: Stage, *, firmly: bool = False) -> TrainingPool:
        """Return what a stage trains on. Only a stage that moves shared blocks has to rehearse the protected head too.

        A fork that holds the old labels *firmly* rehearses as much as shared blocks do.
        """
        rehearsed = self.rehearsed
        if not self.moves_protected(stage):
            rehearsed = tuple(target for target in rehearsed if target.teaches(self.job.head))
        half = stage.forked and not firmly
        ratio = self.recipe.fork_rehearsal_ratio if half else self.recipe.rehearsal_ratio
        if stage.follows is not None and self.job.hyperparameters.rehearsal_ratio is None:
            ratio = len(rehearsed) / len(self.new)  # Features are cached: all that is remembered costs next to nothing.
        return TrainingPool(self.new, rehearsed, ratio)

    def follow_ups(self, stage: Stage) -> tuple[Stage, ...]:
        """Return what follows a stage that moves blocks; STAGED has its own three stages and no other.

        First the head is trained once more over features that are learnt, as a classifier by Kang et al. 2020
        (arXiv:1910.09217); where features are not kept it would run every text six times more. Then the upper half of the
        blocks with it, on all that is new and all that is remembered: the balanced fine-tuning of Castro et al. 2018
        (arXiv:1807.09536). Where nothing is remembered there is nothing to balance, but a fork counts on that stage.
        """
        if not stage.blocks or self.job.freeze == "staged":
            return ()
        head = Stage((self.job.head,), 0, stage.of, follows=stage)
        upper = replace(stage, blocks=stage.blocks - stage.blocks // 2, follows=stage)
        rehearses = bool(self.pool(head).drawn)
        wanted = {head: rehearses and self.keeps_features, upper: rehearses or stage.forked}
        return tuple(stage for stage, is_wanted in wanted.items() if is_wanted)

    @property
    def recalled(self) -> tuple[Target, ...]:
        """Return the remembered texts that some stage may rehearse: all, or those that teach the adapted head."""
        return max((self.pool(stage).rehearsed for stage in self.possible), key=len, default=())

    @property
    def feature_bytes(self) -> int:
        """What one set of features of all that the job trains on takes."""
        encodings = [target.encoding for target in (*self.new, *self.recalled)]
        return cache_bytes(encodings, self.base.manifest.hidden_size)

    @property
    def keeps_features(self) -> bool:
        """Tell whether features are kept, so that what does not move runs once."""
        return self.feature_bytes <= recipe.CACHE_BYTES

    @property
    def shared(self) -> Stage:
        """The stage in which AUTO moves blocks that both heads read."""
        blocks = len(self.model.blocks())
        return Stage((self.job.head,), min(self.recipe.unfrozen_blocks, blocks), blocks)

    @property
    def forked(self) -> Stage:
        """The stage in which AUTO trains blocks of the adapted head's own."""
        blocks, branch = len(self.model.blocks()), self.base.manifest.branch
        own = self.recipe.fork_blocks if branch is None else branch.blocks
        return Stage((self.job.head,), min(own, blocks), blocks, forked=True)

    def why_not_shared(self) -> str | None:
        """Say why AUTO does not try a shared backbone: because the protected task could not be proven whole after it."""
        if isinstance(self.job.protection, Exact):
            return "protection is exact"
        if self.base.manifest.branch is not None:
            return "the heads have blocks of their own already"
        examples = len(annotated_for(self.protected("gate"), other_head(self.job.head)))
        if not examples:
            return "no example is remembered or given to prove the protected task by"
        provable = 100 * provable_margin(examples, recipe.EXPECTED_FLIPS)
        if provable > self.job.protection.margin:
            return f"on {examples} examples no margin under {provable:.1f} points can be proven for a shared backbone"
        return None

    @property
    def possible(self) -> tuple[Stage, ...]:
        """Every stage that may be trained, whatever comes of those before it."""
        if self.job.freeze != "auto":
            return self.stages
        return (*self.stages, *(() if self.why_not_shared() else (self.shared,)), self.forked)

    def deepest(self) -> int:
        """Return the number of blocks that no stage of the plan moves, from the bottom."""
        return min((stage.of - stage.blocks for stage in self.possible), default=0)

    def approved(self) -> Checkpoint | None:
        """Return the last checkpoint that a person approved, if it is another one than the base and still there."""
        store = Store(self.job.store)
        name = store.aliases().approved
        if name is None or name == self.base.id:
            return None
        try:
            return store.get(name)
        except CheckpointNotFoundError:
            return None

    def events(self) -> Iterator[Event]:
        """Say what was found and what is going to be done."""
        counted = describe_dataset(self.parts, self.new, self.unaligned[0], self.job.head)
        yield counted
        for note in self.notes:
            yield NoteAdded(message=note)
        if self.unaligned[0]:
            yield note_unaligned(self.unaligned)
        if self.unjudged:
            first, more = ", ".join(self.unjudged[:SHOWN]), len(self.unjudged) - SHOWN
            names = f"{first} and {more} others" if more > 0 else first
            message = (
                f"No held-out example has {names}: no score tells whether that was learnt. Give dev examples of it."
            )
            yield NoteAdded(message=message, warning=True)
        yield PlanMade(plan=self.sentence(), hyperparameters=recipe.echo(self.recipe), added_labels=self.added)

    def sentence(self) -> str:
        """Say in one sentence what the trainer is going to do."""
        data = f"{len(self.parts.train)} new examples"
        if not self.stages:
            return f"Measure {self.base.id} on {len(self.parts.gate)} of the given examples and train nothing."
        names = ", then ".join(stage.name for stage in self.stages)
        if self.job.freeze == "auto":
            why = self.why_not_shared()
            names += f", then {self.shared.name} under guard" if why is None else f", then {self.forked.name}"
        after = self.follow_ups(self.possible[-1])
        names += "".join(f", then {stage.name}" for stage in after)
        rehearsed = max(self.pool(stage, firmly=True).drawn for stage in (*self.possible, *after))
        return (
            f"Adapt the {self.job.head} head of {self.base.id} to {data} and up to {rehearsed} rehearsed ones an epoch; "
            f"train {names}; add {len(self.added)} names."
        )


def make_plan(job: Job) -> Plan:
    """Check a job. Raises RefusedError, ExampleError or another CheckpointError that says what to change."""
    check_settings(job)
    base = Store(job.store).get(job.base)
    base.verify()
    memory = read_memory(base.path / MEMORY)
    if job.label_policy == "replace":
        memory = forget(memory, job.head)
    train, dev, notes = read_job_examples(job, base.manifest.labels)
    parts = split(train, dev, memory, held_out=recipe.HELD_OUT_SHARE)
    if parts.moved:
        notes.append(
            f"{parts.moved} examples keep the part in which their text already stands, to keep the judges apart."
        )
    if not parts.train:
        raise RefusedError("no example is left to train on: every text is one that the checkpoint holds out")
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
    resolved = recipe.resolve(job.hyperparameters, default, blocks=blocks)
    rungs = recipe.rungs(job.freeze, blocks=blocks, unfrozen=resolved.unfrozen_blocks)
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
        stages=tuple(Stage((job.head,), rung, blocks) for rung in rungs),
        notes=tuple(notes),
    )

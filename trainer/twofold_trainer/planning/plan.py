"""The plan of a job: checked settings, examples, labels, recipe and stages. Bad jobs are refused before any training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twofold_checkpoint.checkpoint import MEMORY, STATISTICS, Checkpoint
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.errors import CheckpointNotFoundError
from twofold_checkpoint.examples import Example
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName, MemoryMode, other_head
from twofold_checkpoint.memory import Memory, normalize_text, read_memory
from twofold_checkpoint.protocol.events import Event, NoteAdded, PlanMade
from twofold_checkpoint.protocol.job import TrainerJob, TrainingRequest
from twofold_checkpoint.store import Store

from twofold_trainer import recipe
from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.datasets.job_examples import read_job_examples
from twofold_trainer.datasets.label_growth import extend_labels, head_labels
from twofold_trainer.datasets.splits import Parts, describe_dataset, drop_annotations, split, types_of
from twofold_trainer.datasets.targets import Target, describe_unaligned, make_targets, note_unaligned
from twofold_trainer.errors import RefusedError
from twofold_trainer.modeling.features import cache_bytes
from twofold_trainer.modeling.mixed_precision import has_bf16
from twofold_trainer.modeling.model import TwofoldModel, load_model
from twofold_trainer.planning.stage import Stage
from twofold_trainer.planning.stages import StagePlanner, shared_backbone_blocker, training_encodings
from twofold_trainer.planning.validation import check_settings
from twofold_trainer.protection.covariances import Covariances, load_covariances
from twofold_trainer.recipe import Recipe

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
    protected_dev: tuple[Example, ...]
    """Examples by which training measures the protected head."""
    protected_gate: tuple[Example, ...]
    """Examples by which the gate measures the protected head."""
    unaligned: tuple[int, str]
    recipe: Recipe
    stages: tuple[Stage, ...]
    """The stages that run, in order, if each of them improves the dev score."""
    fallback: tuple[Stage, ...]
    """The stages with which freeze mode "auto" trains a fork if the shared backbone fails."""
    shared_blocker: str | None
    """Why freeze mode "auto" skips the shared backbone; None if it does not."""
    notes: tuple[str, ...]

    @property
    def request(self) -> TrainingRequest:
        """The settings of the job."""
        return self.job.request

    @property
    def remembers(self) -> MemoryMode:
        """Memory mode of the candidate."""
        return self.request.memory or self.base.manifest.memory

    @property
    def added(self) -> tuple[str, ...]:
        """New labels or entity types of the adapted head."""
        return head_labels(self.labels, self.request.head)[self.retained_labels :]

    @property
    def retained_labels(self) -> int:
        """Number of old labels or entity types that the adapted head keeps: all, or 0 if they are replaced."""
        replaced = self.request.label_policy == "replace"
        return 0 if replaced else len(head_labels(self.base.manifest.labels, self.request.head))

    @property
    def unscored(self) -> tuple[str, ...]:
        """Added labels or types without a held-out example, which no score covers."""
        held_out = [*self.parts.dev, *self.parts.gate]
        judged = {example.label for example in held_out} if self.request.head == "classifier" else {*types_of(held_out)}
        return tuple(name for name in self.added if name not in judged)

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Every stage that may run."""
        return (*self.stages, *self.fallback)

    @property
    def feature_bytes(self) -> int:
        """Size in bytes of one set of features of all training texts."""
        return cache_bytes(training_encodings(self.all_stages), self.base.manifest.hidden_size)

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
        counted = describe_dataset(self.parts, self.new, self.unaligned[0], self.request.head)
        yield counted
        for note in self.notes:
            yield NoteAdded(message=note)
        if self.unaligned[0]:
            yield note_unaligned(self.unaligned)
        if self.unscored:
            first, more = ", ".join(self.unscored[:MAX_NAMES]), len(self.unscored) - MAX_NAMES
            names = f"{first} and {more} others" if more > 0 else first
            message = f"No held-out example has {names}, so no score covers it; add dev examples."
            yield NoteAdded(message=message, warning=True)
        yield PlanMade(
            plan=self.summary(), hyperparameters=recipe.to_hyperparameters(self.recipe), added_labels=self.added
        )

    def summary(self) -> str:
        """Return two or three sentences that say what the trainer will do."""
        if not self.stages:
            return f"Score {self.base.id} on {len(self.parts.gate)} of the given examples and train nothing."
        guarded = self.request.freeze == "auto" and self.shared_blocker is None
        names = ", ".join(
            f"{stage.name} under guard" if guarded and stage.blocks and not stage.follows else stage.name
            for stage in self.stages
        )
        rehearsed = max(stage.full_rehearsal_pool.rehearsed_per_epoch for stage in self.all_stages)
        return (
            f"Adapt the {self.request.head} head of {self.base.id} to {len(self.parts.train)} new examples, with up to {rehearsed} "
            f"rehearsed examples per epoch. New labels: {len(self.added)}. Stages: {names}."
        )


def _annotated(head: HeadName, remembered: tuple[Example, ...], held_out: tuple[Example, ...]) -> tuple[Example, ...]:
    """Return the examples annotated for a head: those that the memory has, and those that a job holds out of other texts."""
    texts = {normalize_text(example.text) for example in remembered}
    added = (example for example in held_out if normalize_text(example.text) not in texts)
    return tuple(annotated_for((*remembered, *added), head))


def make_plan(job: TrainerJob) -> Plan:
    """Check a job and plan it. Raises RefusedError, ExampleError or another CheckpointError that says what to change."""
    request = job.request
    check_settings(request)
    base = Store(job.store).get(job.base)
    base.verify()
    memory = read_memory(base.path / MEMORY)
    if request.label_policy == "replace":
        memory = drop_annotations(memory, request.head)
    train, dev, notes = read_job_examples(job, base.manifest.labels)
    parts = split(train, dev, memory, held_out=HELD_OUT_SHARE)
    if parts.moved:
        notes.append(
            f"{parts.moved} examples were moved to the split that already has their text, to keep the splits disjoint."
        )
    if not parts.train:
        raise RefusedError(
            "no training examples remain: the base checkpoint holds out all of their texts; add examples with other texts"
        )
    labels = extend_labels(request, base.manifest.labels, [*parts.train, *parts.dev, *parts.gate])
    model, encoder = load_model(base), base.encoder()
    blocks = len(model.blocks())
    remembers = base.manifest.memory
    default = recipe.default_recipe(
        request.freeze,
        request.head,
        blocks=blocks,
        examples=len(parts.train),
        hidden_size=base.manifest.hidden_size,
        remembers=remembers,
        bf16=has_bf16(),
    )
    resolved = recipe.apply_hyperparameters(request.hyperparameters, default, blocks=blocks)
    new = tuple(make_targets(parts.train, encoder, labels, heads=(request.head,)))
    rehearsed = tuple(make_targets(memory.rehearsal, encoder, labels, rehearsed=True))
    held_out = make_targets([*parts.dev, *parts.gate], encoder, labels, heads=(request.head,))
    branch, hidden_size = base.manifest.branch, base.manifest.hidden_size
    protected_gate = _annotated(other_head(request.head), memory.gate, parts.gate)
    blocker = shared_backbone_blocker(request, branch, len(protected_gate))
    planner = StagePlanner(request, resolved, new, rehearsed, blocks, hidden_size, branch)
    stages, fallback = planner.stages(blocker)
    return Plan(
        job=job,
        base=base,
        model=model,
        encoder=encoder,
        memory=memory,
        statistics=load_covariances(base.path / STATISTICS) if remembers == "statistics" else None,
        parts=parts,
        labels=labels,
        new=new,
        rehearsed=rehearsed,
        protected_dev=_annotated(other_head(request.head), memory.dev, parts.dev),
        protected_gate=protected_gate,
        unaligned=describe_unaligned([*new, *held_out]),
        recipe=resolved,
        stages=stages,
        fallback=fallback,
        shared_blocker=blocker,
        notes=tuple(notes),
    )

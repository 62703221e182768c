"""Split examples into training, dev and gate parts. Pure functions of the texts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.memory import PARTS, Memory, Part, balanced_sample, normalize_text, split_by_hash
from twofold_checkpoint.protocol.events import DatasetDescribed

from twofold_trainer.datasets.targets import Target

MEMORY_REHEARSAL = 2000
MEMORY_DEV = 500
MEMORY_GATE = 2000
"""Largest number of remembered examples per part of a checkpoint's memory."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The examples of a job in three disjoint parts. No text is in two parts."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    gate: tuple[Example, ...]
    moved: int = 0
    """The number of examples moved because their text already belongs to another part."""


def split(train: Sequence[Example], dev: Sequence[Example] | None, memory: Memory, *, held_out: float) -> Parts:
    """Split a job's examples into training, dev and gate.

    Without *dev*, the share *held_out* of *train* is set aside. Held-out examples are halved into dev and gate by a
    hash of their text. A held-out text never becomes a training text: a text in the memory keeps its part, and a text
    that occurs twice goes to the more protected part (gate, then dev, then training).
    """
    if dev is None:
        train, dev = set_aside(train, held_out)
    dev_half, gate_half = _halve(dev)
    parts: dict[Part, Sequence[Example]] = {"gate": gate_half, "dev": dev_half, "rehearsal": train}
    part_of: dict[str, Part] = {}
    for part in reversed(PARTS):
        for example in getattr(memory, part):
            part_of.setdefault(normalize_text(example.text), part)
    for part, examples in parts.items():
        for example in examples:
            part_of.setdefault(normalize_text(example.text), part)
    assigned: dict[Part, list[Example]] = {part: [] for part in PARTS}
    moved = 0
    for part in PARTS:
        for example in parts[part]:
            target_part = part_of[normalize_text(example.text)]
            moved += target_part != part
            assigned[target_part].append(example)
    return Parts(tuple(assigned["rehearsal"]), tuple(assigned["dev"]), tuple(assigned["gate"]), moved)


def set_aside(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Hold out the given share of the texts, those with the smallest hashes: two or more texts, but at most half."""
    texts = sorted(
        {normalize_text(example.text) for example in examples}, key=lambda text: hashlib.sha256(text.encode()).digest()
    )
    count = min(max(2, round(share * len(texts))), len(texts) // 2)
    chosen = set(texts[:count])
    train = [example for example in examples if normalize_text(example.text) not in chosen]
    return train, [example for example in examples if normalize_text(example.text) in chosen]


def _halve(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Split by hash, or alternately if one half would be empty."""
    dev, gate = split_by_hash(examples)
    if len(examples) > 1 and not (dev and gate):
        return list(examples[::2]), list(examples[1::2])
    return dev, gate


def drop_annotations(memory: Memory, head: HeadName) -> Memory:
    """Return the memory without its annotations for a head. Examples that have no other annotation are removed."""

    def strip(examples: Sequence[Example]) -> tuple[Example, ...]:
        unannotated = {"label": None} if head == "classifier" else {"entities": None, "annotated_types": None}
        stripped = (msgspec.structs.replace(example, **unannotated) for example in examples)
        return tuple(example for example in stripped if example.label is not None or example.entities is not None)

    return Memory(rehearsal=strip(memory.rehearsal), dev=strip(memory.dev), gate=strip(memory.gate))


def add_to_memory(memory: Memory, parts: Parts, *, seed: int) -> Memory:
    """Return the memory with a job's examples added. Each part is sampled to its limit and balanced."""
    return Memory(
        rehearsal=_merge(memory.rehearsal, parts.train, MEMORY_REHEARSAL, seed),
        dev=_merge(memory.dev, parts.dev, MEMORY_DEV, seed),
        gate=_merge(memory.gate, parts.gate, MEMORY_GATE, seed),
    )


def _merge(old: Sequence[Example], new: Iterable[Example], limit: int, seed: int) -> tuple[Example, ...]:
    """Merge examples by text, combine the annotations of duplicates, and sample up to *limit*."""
    merged = {normalize_text(example.text): example for example in old}
    for example in new:
        stored = merged.get(normalize_text(example.text))
        merged[normalize_text(example.text)] = example if stored is None else _join(stored, example)
    return balanced_sample(tuple(merged.values()), limit, seed=seed)


def _join(old: Example, new: Example) -> Example:
    """Return the newer example, plus annotations that only the older one has if their texts are identical."""
    if old.text != new.text:
        return new
    return msgspec.structs.replace(
        new,
        label=old.label if new.label is None else new.label,
        entities=old.entities if new.entities is None else new.entities,
        annotated_types=old.annotated_types if new.entities is None else new.annotated_types,
    )


def types_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """Return the entity types that occur, sorted."""
    return tuple(sorted({span.type for example in examples for span in example.entities or ()}))


def with_annotated_types(examples: Iterable[Example], types: tuple[str, ...]) -> list[Example]:
    """Set the annotated types of each example that has entities but no annotated types."""
    return [
        msgspec.structs.replace(example, annotated_types=types)
        if example.entities is not None and example.annotated_types is None
        else example
        for example in examples
    ]


def count_labels(examples: Iterable[Example], *, labels: bool = True, types: bool = True) -> dict[str, int]:
    """Count the examples of each label and the spans of each entity type."""
    counted: Counter[str] = Counter()
    for example in examples:
        if labels and example.label is not None:
            counted[example.label] += 1
        if types:
            counted.update(span.type for span in example.entities or ())
    return dict(sorted(counted.items()))


def describe_dataset(
    parts: Parts, targets: Sequence[Target], unaligned: int, head: HeadName | None = None
) -> DatasetDescribed:
    """Return the event that describes the job's data."""
    return DatasetDescribed(
        train_examples=len(parts.train),
        dev_examples=len(parts.dev),
        gate_examples=len(parts.gate),
        label_counts=count_labels(parts.train, labels=head != "ner", types=head != "classifier"),
        unaligned_annotations=unaligned,
        mean_tokens=sum(len(target.encoding.ids) for target in targets) / max(1, len(targets)),
    )

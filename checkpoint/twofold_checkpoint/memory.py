"""The examples stored in a checkpoint, for rehearsal and evaluation in the next adaptation."""

from __future__ import annotations

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from twofold_checkpoint.errors import CheckpointCorruptError
from twofold_checkpoint.examples import Example

Part = Literal["rehearsal", "dev", "gate"]
PARTS: tuple[Part, Part, Part] = ("rehearsal", "dev", "gate")


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """A remembered example and its part. An example never changes its part."""

    part: Part
    example: Example


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Examples in three disjoint parts.

    *rehearsal* is for training, *dev* for early stopping and tuning, *gate* only for judging a finished candidate.
    """

    rehearsal: tuple[Example, ...] = ()
    dev: tuple[Example, ...] = ()
    gate: tuple[Example, ...] = ()


def read_memory(path: str | os.PathLike[str]) -> Memory:
    """Read memory.jsonl. Raises CheckpointCorruptError."""
    parts: dict[Part, list[Example]] = {part: [] for part in PARTS}
    decoder = msgspec.json.Decoder(Remembered)
    number = 0
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, 1):  # noqa: B007 -- the handler below says where it stopped.
                remembered = decoder.decode(raw)
                parts[remembered.part].append(remembered.example)
    except OSError as error:
        raise CheckpointCorruptError(f"{Path(path).name}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise CheckpointCorruptError(f"{Path(path).name}:{number}: {error}") from error
    return Memory(rehearsal=tuple(parts["rehearsal"]), dev=tuple(parts["dev"]), gate=tuple(parts["gate"]))


def write_memory(path: str | os.PathLike[str], memory: Memory) -> None:
    """Write memory.jsonl."""
    encoder = msgspec.json.Encoder()
    with Path(path).open("wb") as file:
        for part in PARTS:
            file.writelines(
                encoder.encode(Remembered(part=part, example=example)) + b"\n" for example in getattr(memory, part)
            )


def normalize_text(text: str) -> str:
    """Return the text in lower case with single spaces. Texts with equal results count as the same text."""
    return " ".join(text.casefold().split())


def split_by_hash(examples: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """Split examples into two halves by a hash of the text, so that a text is always in the same half."""
    halves: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        halves[hashlib.sha256(normalize_text(example.text).encode()).digest()[0] & 1].append(example)
    return halves


def balanced_sample(examples: Sequence[Example], limit: int, *, seed: int) -> tuple[Example, ...]:
    """Sample at most *limit* examples, balanced over labels and entity types as far as their counts allow.

    Groups are sampled round-robin, each in a shuffled order: one group per label and type, and one for examples with
    neither. The result keeps the order of *examples*.
    """
    if len(examples) <= limit:
        return tuple(examples)
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index in order:
        example = examples[index]
        names = {("type", span.type) for span in example.entities or ()}
        if example.label is not None:
            names.add(("label", example.label))
        for name in names or {("", "")}:
            groups[name].append(index)
    queues = [iter(groups[name]) for name in sorted(groups)]
    chosen: set[int] = set()
    while queues and len(chosen) < limit:
        for queue in list(queues):
            if len(chosen) == limit:
                break
            following = next((index for index in queue if index not in chosen), None)
            if following is None:
                queues.remove(queue)
            else:
                chosen.add(following)
    return tuple(examples[index] for index in sorted(chosen))

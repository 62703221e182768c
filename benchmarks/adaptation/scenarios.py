"""The adaptation scenarios: the examples that train the base, train each step, and test both."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example, Span, read_examples
from twofold_checkpoint.manifest import HeadName

VERSION = 1
"""Supported version of the scenario file."""


class ScenarioError(Exception):
    """A scenario file, or a data set that it names, is invalid."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Select examples of a file. Unknown keys are rejected: they would be selection steps that this code does not know."""

    file: str
    use: tuple[Literal["label", "entities"], ...]
    n: int
    entities: int | None = None
    labels: tuple[str, ...] | None = None
    exclude_labels: tuple[str, ...] = ()
    label_map: dict[str, str] | None = None
    entity_types: tuple[str, ...] | None = None
    entity_map: dict[str, str] | None = None
    require_entities: bool = False
    skip_per_label: int = 0
    per_label: int | None = None
    skip: int = 0
    first: int | None = None


Sources = tuple[Source, ...]


class Base(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe the data that trains the first checkpoint."""

    train: Sources
    dev: Sources


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe the data of an adaptation."""

    name: str
    train: Sources
    dev: Sources
    eval: Sources


class Tests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe the test data of the protected head and of the adapted head's old labels."""

    protected: Sources
    retained: Sources


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a base, one or more successive adaptations, and the tests."""

    name: str
    kind: str
    protected_head: HeadName
    adapted_head: HeadName
    label_space: Literal["extend", "replace"]
    base: Base
    steps: tuple[Step, ...]
    eval: Tests
    why: str = ""

    def __post_init__(self) -> None:
        if self.protected_head == self.adapted_head:
            raise ValueError(
                f"{self.name}: both heads are {self.adapted_head!r}; adapted_head and protected_head must differ"
            )


class Caps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limit the number of examples of each list, as the last step. None is unlimited."""

    train_first: int | None = None
    dev_first: int | None = None
    eval_first: int | None = None


class ScenarioFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold all scenarios, and the limits of a quick run."""

    version: int
    quick: Caps
    scenarios: tuple[Scenario, ...]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"unknown version {self.version}; this benchmark reads version {VERSION}")


def read_scenarios(root: Path) -> ScenarioFile:
    """Read ROOT/scenarios.json. Raises ScenarioError with the path and the position."""
    path = root / "scenarios.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=ScenarioFile)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}; pass the directory that holds it and its data sets") from error
    except msgspec.DecodeError as error:
        raise ScenarioError(f"{path}: {error}") from error


def gather(root: Path, sources: Iterable[Source], first: int | None = None) -> tuple[Example, ...]:
    """Return the first examples of a list of sources, in order. Raises ScenarioError."""
    examples = [example for source in sources for example in resolve(root, source)]
    return tuple(examples[:first])


def resolve(root: Path, source: Source) -> list[Example]:
    """Return the examples that a source selects, and check their counts. Raises ScenarioError.

    If entities are used, the ``annotated_types`` of an example are all types in the source after selecting and mapping
    types, and before limiting the number of examples.
    """
    lines = [line for line in _read(root / source.file) if _is_selected(line.label, source)]
    if source.label_map is not None:
        mapping = source.label_map
        lines = [msgspec.structs.replace(line, label=mapping[line.label]) for line in lines if line.label in mapping]
    lines = [_with_types(line, source) for line in lines]
    types = tuple(sorted({span.type for line in lines for span in line.entities or ()}))
    if source.require_entities:
        lines = [line for line in lines if line.entities]
    if source.skip_per_label or source.per_label is not None:
        lines = _per_label(lines, source.skip_per_label, source.per_label)
    lines = lines[source.skip :][: source.first]
    examples = [_use(line, source, types) for line in lines]
    _check(examples, source)
    return examples


@functools.cache
def _read(path: Path) -> tuple[Example, ...]:
    try:
        return tuple(read_examples(path))
    except ExampleError as error:
        raise ScenarioError(str(error)) from error


def _is_selected(label: str | None, source: Source) -> bool:
    return (source.labels is None or label in source.labels) and label not in source.exclude_labels


def _with_types(line: Example, source: Source) -> Example:
    """Keep the entities of the selected types and map their names."""
    kept: Iterable[Span] = line.entities or ()
    if source.entity_types is not None:
        types = source.entity_types
        kept = [span for span in kept if span.type in types]
    if source.entity_map is not None:
        mapping = source.entity_map
        kept = [msgspec.structs.replace(span, type=mapping[span.type]) for span in kept if span.type in mapping]
    return line if line.entities is None else msgspec.structs.replace(line, entities=tuple(kept))


def _per_label(lines: Sequence[Example], skipped: int, taken: int | None) -> list[Example]:
    """Skip the first *skipped* lines of each label and take the next *taken*, in the order of the file."""
    counts: defaultdict[str | None, int] = defaultdict(int)
    selected = []
    for line in lines:
        index = counts[line.label] - skipped
        counts[line.label] += 1
        if index >= 0 and (taken is None or index < taken):
            selected.append(line)
    return selected


def _use(line: Example, source: Source, types: tuple[str, ...]) -> Example:
    """Mark the annotations that the source does not use as missing."""
    entities = line.entities if "entities" in source.use else None
    return Example(
        text=line.text,
        label=line.label if "label" in source.use else None,
        entities=entities,
        annotated_types=None if entities is None else types,
    )


def _check(examples: Sequence[Example], source: Source) -> None:
    """Compare the counts with the expected ones."""
    counted = {"n": len(examples), "entities": sum(len(example.entities or ()) for example in examples)}
    for field, count in counted.items():
        expected = getattr(source, field)
        if expected is not None and count != expected and (field == "n" or "entities" in source.use):
            raise ScenarioError(
                f"{source.file}: expected {field} {expected}, selected {count}; the data or the selection changed"
            )

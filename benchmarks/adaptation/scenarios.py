"""The adaptation scenarios: which lines of which files train the base, teach a step and judge it."""

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
"""Version of the scenario file that this reader knows."""


class ScenarioError(Exception):
    """A scenario file, or the data that it names, is not what it says."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choose lines of one file. An unknown key is refused: it would be a step that this reader does not know."""

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
    """Say what a model with both heads is first trained on."""

    train: Sources
    dev: Sources


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say what one adaptation learns from and is judged on."""

    name: str
    train: Sources
    dev: Sources
    eval: Sources


class Tests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say what the protected head, and the adapted head's old labels, are judged on."""

    protected: Sources
    retained: Sources


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a base, one or more adaptations of it in a row, and the tests around them."""

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
            raise ValueError(f"{self.name}: both heads are {self.adapted_head!r}; one is adapted, the other protected")


class Caps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bound how many lines of each list are used, after everything else. None takes all."""

    train_first: int | None = None
    dev_first: int | None = None
    eval_first: int | None = None


class ScenarioFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold all scenarios, and the caps of a short run."""

    version: int
    quick: Caps
    scenarios: tuple[Scenario, ...]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version} is not known; this benchmark reads version {VERSION}")


def read_scenarios(root: Path) -> ScenarioFile:
    """Read ROOT/scenarios.json. Raises ScenarioError that names the place."""
    path = root / "scenarios.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=ScenarioFile)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}; name the directory that holds it and its data sets") from error
    except msgspec.DecodeError as error:
        raise ScenarioError(f"{path}: {error}") from error


def gather(root: Path, sources: Iterable[Source], first: int | None = None) -> tuple[Example, ...]:
    """Return the examples of a list of sources, in order, at most *first* of them. Raises ScenarioError."""
    found = [example for source in sources for example in resolve(root, source)]
    return tuple(found[:first])


def resolve(root: Path, source: Source) -> list[Example]:
    """Return the examples that a source chooses, and check their counts. Raises ScenarioError.

    Where entities are used, an example's ``annotated_types`` are the types that the source's own annotation knows:
    those that occur after its types were chosen and mapped, before lines are counted out.
    """
    lines = [line for line in _read(root / source.file) if _is_chosen(line.label, source)]
    if source.label_map is not None:
        mapping = source.label_map
        lines = [msgspec.structs.replace(one, label=mapping[one.label]) for one in lines if one.label in mapping]
    lines = [_with_types(line, source) for line in lines]
    types = tuple(sorted({span.type for line in lines for span in line.entities or ()}))
    if source.require_entities:
        lines = [line for line in lines if line.entities]
    if source.skip_per_label or source.per_label is not None:
        lines = _per_label(lines, source.skip_per_label, source.per_label)
    lines = lines[source.skip :][: source.first]
    used = [_use(line, source, types) for line in lines]
    _check(used, source)
    return used


@functools.cache
def _read(path: Path) -> tuple[Example, ...]:
    try:
        return tuple(read_examples(path))
    except ExampleError as error:
        raise ScenarioError(str(error)) from error


def _is_chosen(label: str | None, source: Source) -> bool:
    return (source.labels is None or label in source.labels) and label not in source.exclude_labels


def _with_types(line: Example, source: Source) -> Example:
    """Keep the entities of the chosen types, under their new names."""
    kept: Iterable[Span] = line.entities or ()
    if source.entity_types is not None:
        types = source.entity_types
        kept = [span for span in kept if span.type in types]
    if source.entity_map is not None:
        mapping = source.entity_map
        kept = [msgspec.structs.replace(span, type=mapping[span.type]) for span in kept if span.type in mapping]
    return line if line.entities is None else msgspec.structs.replace(line, entities=tuple(kept))


def _per_label(lines: Sequence[Example], skipped: int, taken: int | None) -> list[Example]:
    """Of each label leave out the first *skipped* lines, then take *taken*; the file's order stays."""
    seen: defaultdict[str | None, int] = defaultdict(int)
    chosen = []
    for line in lines:
        place = seen[line.label] - skipped
        seen[line.label] += 1
        if place >= 0 and (taken is None or place < taken):
            chosen.append(line)
    return chosen


def _use(line: Example, source: Source, types: tuple[str, ...]) -> Example:
    """Let what may not be used count as not annotated."""
    entities = line.entities if "entities" in source.use else None
    return Example(
        text=line.text,
        label=line.label if "label" in source.use else None,
        entities=entities,
        annotated_types=None if entities is None else types,
    )


def _check(used: Sequence[Example], source: Source) -> None:
    """Compare the counts with those that must come out."""
    counted = {"n": len(used), "entities": sum(len(example.entities or ()) for example in used)}
    for field, count in counted.items():
        wanted = getattr(source, field)
        if wanted is not None and count != wanted and (field == "n" or "entities" in source.use):
            raise ScenarioError(
                f"{source.file}: {field} is {wanted}, and {count} came out; the data or the rule changed"
            )

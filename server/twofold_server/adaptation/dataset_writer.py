"""Contents of a data set, and the writer that stores one atomically."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Self

import msgspec
from twofold_checkpoint.examples import Example, check_example
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.store import flush

from twofold_server.errors import InvalidRequestError, OverloadedError, Violation

Part = Literal["train", "dev"]
CONTENTS = "contents.json"
MAX_NAME_LENGTH = 100
"""Longest label or entity type, in code points."""
MAX_NAMES = 2000
"""Maximum number of labels, and of entity types, in a data set."""


@dataclass(frozen=True, slots=True)
class Inline:
    """Examples sent inside a request."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...] = ()


class Contents(msgspec.Struct, kw_only=True):
    """Counts of a data set, and the first location of each name, such as ``train[3].label``."""

    display_name: str = ""
    examples: dict[Part, int] = msgspec.field(default_factory=lambda: {"train": 0, "dev": 0})
    annotated: dict[HeadName, int] = msgspec.field(default_factory=lambda: {"classifier": 0, "ner": 0})
    """Number of training examples annotated for each head."""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    entity_types: dict[str, str] = msgspec.field(default_factory=dict)

    def add(self, part: Part, example: Example) -> None:
        """Count an example. Raises InvalidRequestError if a name is too long or there are too many names."""
        location = f"{part}[{self.examples[part]}]"
        self.examples[part] += 1
        if part == "train":
            self.annotated["classifier"] += example.label is not None
            self.annotated["ner"] += example.entities is not None
        if example.label is not None:
            _add_name(self.labels, example.label, f"{location}.label")
        for index, span in enumerate(example.entities or ()):
            _add_name(self.entity_types, span.type, f"{location}.entities[{index}].type")


def _add_name(names: dict[str, str], name: str, location: str) -> None:
    if name in names:
        return
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidRequestError(
            Violation(location, f"{name[:40]!r}... has {len(name)} characters; the maximum is {MAX_NAME_LENGTH}")
        )
    if len(names) >= MAX_NAMES:
        raise InvalidRequestError(Violation(location, f"exceeds the limit of {MAX_NAMES} names per data set"))
    names[name] = location


@dataclass(slots=True)
class DatasetWriter:
    """Checks examples and writes them to the files of a data set. Methods block."""

    path: Path
    max_examples: int
    contents: Contents = field(default_factory=Contents)
    _files: dict[Part, BinaryIO] = field(default_factory=dict)
    _encoder: msgspec.json.Encoder = field(default_factory=msgspec.json.Encoder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # add() and finish() have already raised this error.
                file.close()

    def add(self, part: Part, examples: Iterable[Example]) -> None:
        """Check and write examples.

        Raises ExampleError that names part, line and field, InvalidRequestError if there are too many examples, and
        OverloadedError if the disk write fails.
        """
        try:
            for example in examples:
                line = self.contents.examples[part] + 1
                checked = check_example(example, source=part, line=line)
                if sum(self.contents.examples.values()) >= self.max_examples:
                    raise InvalidRequestError(
                        Violation(
                            part,
                            f"line {line} exceeds the limit of {self.max_examples} examples per data set; send fewer",
                        )
                    )
                self.contents.add(part, checked)
                if part not in self._files:
                    self._files[part] = (self.path / f"{part}.jsonl").open("wb")
                self._files[part].write(self._encoder.encode(checked) + b"\n")
        except OSError as error:
            raise _disk_error(error) from error

    def finish(self) -> Contents:
        """Flush everything to disk."""
        try:
            (self.path / CONTENTS).write_bytes(self._encoder.encode(self.contents))
            for file in self._files.values():
                file.flush()
            for path in (*self.path.iterdir(), self.path):
                flush(path)
        except OSError as error:
            raise _disk_error(error) from error
        return self.contents


def read_contents(path: Path) -> Contents:
    """Read the contents file of a stored data set."""
    return msgspec.json.decode((path / CONTENTS).read_bytes(), type=Contents)


def move_dataset(staged: Path, target: Path) -> None:
    """Move a finished directory to its target, atomically and durably."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(target)
    flush(target.parent)


def _disk_error(error: OSError) -> OverloadedError:
    return OverloadedError(f"the data set could not be stored: {error.strerror}", retry_after=60.0)

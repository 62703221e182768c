"""Annotated texts, stored as JSON lines."""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from twofold_checkpoint.errors import ExampleError

MAX_CHARACTERS = 20_000
"""Maximum length of an example's text, in code points."""


class Span(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """An entity of a type at the half-open range [start, end) of a text, in code points."""

    start: int
    end: int
    type: str


class Example(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A text and its annotations.

    ``label is None`` and ``entities is None`` mean *not annotated*; ``entities == ()`` means *annotated, without
    entities*. ``annotated_types`` are the entity types that annotators marked in this text; None means all types. The
    memory stores it, so that later training does not mistake an unannotated type for an absent one.
    """

    text: str
    label: str | None = None
    entities: tuple[Span, ...] | None = None
    annotated_types: tuple[str, ...] | None = None


def check_example(example: Example, *, source: str, line: int = 0) -> Example:
    """Return the example with its spans sorted, or raise ExampleError that names the field."""

    def refuse(field: str, reason: str) -> ExampleError:
        return ExampleError(source=source, line=line, field=field, reason=reason)

    length = len(example.text)
    if not example.text.strip():
        raise refuse("text", "is empty; every example needs a text")
    if length > MAX_CHARACTERS:
        raise refuse("text", f"has {length} characters; at most {MAX_CHARACTERS} are allowed, split the text")
    if example.label is not None and (not example.label or example.label != example.label.strip()):
        raise refuse("label", f"{example.label!r} is empty or has white space around it; leave it out if not annotated")
    if example.entities is None:
        return example
    for index, span in enumerate(example.entities):
        location = f"entities[{index}]"
        if not span.type or span.type != span.type.strip():
            raise refuse(f"{location}.type", f"{span.type!r} is empty or has white space around it")
        if example.annotated_types is not None and span.type not in example.annotated_types:
            raise refuse(f"{location}.type", f"{span.type!r} is not among the annotated_types")
        if not 0 <= span.start < length:
            raise refuse(f"{location}.start", f"{span.start} is outside the text of {length} characters")
        if not span.start < span.end <= length:
            raise refuse(
                f"{location}.end",
                f"{span.end} must be above start ({span.start}) and at most the text's {length} characters (code points)",
            )
    ordered = sorted(enumerate(example.entities), key=lambda item: (item[1].start, item[1].end))
    for (_, left), (index, right) in itertools.pairwise(ordered):
        if right.start < left.end:
            raise refuse(
                f"entities[{index}].start",
                f"{right.start} lies inside the span [{left.start}, {left.end}) of type {left.type!r}; "
                "spans must not overlap",
            )
    return msgspec.structs.replace(example, entities=tuple(span for _, span in ordered))


def parse_example(raw: bytes | str, *, source: str, line: int) -> Example:
    """Read one JSON line, or raise ExampleError that names the field."""
    try:
        example = msgspec.json.decode(raw, type=Example)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise ExampleError(source=source, line=line, field=path.rstrip("`"), reason=reason) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExampleError(source=source, line=line, field="", reason=f"is not a JSON object: {error}") from error
    return check_example(example, source=source, line=line)


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Yield the examples of a JSON-lines file; blank lines are skipped.

    Raises ExampleError for the first bad line, and for a file that cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, 1):
                raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw  # noqa: PLW2901 -- Windows writes it.
                if raw.strip():
                    yield parse_example(raw, source=str(path), line=number)
    except OSError as error:
        raise ExampleError(source=str(path), line=0, field="", reason=f"cannot be read: {error.strerror}") from error


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Write examples as JSON lines and flush them to disk."""
    encoder = msgspec.json.Encoder()
    with Path(path).open("wb") as file:
        for example in examples:
            file.write(encoder.encode(example))
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())

"""Files in, JSON lines out."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from twofold._types.examples import Example
from twofold.cli._conll import SUFFIXES, read_conll

T = TypeVar("T")


def read_texts(path: Path) -> list[str]:
    """Return the texts of the lines {"text": ...} of a file; other keys are ignored."""
    return _read(path, lambda record: Example.from_dict({"text": record.get("text")}).text)


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a file: CoNLL columns if its ending says so, else JSON lines."""
    return read_conll(path) if path.suffix in SUFFIXES else _read(path, Example.from_dict)


def batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut *texts* into lists of *size*; the last one may be shorter."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def written_at_once(path: Path) -> Iterator[TextIO]:
    """Open a file that appears under its name only when all is written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path, parse: Callable[[Any], T]) -> list[T]:
    found = []
    # Split at "\n" alone: JSON lets U+2028 and its like stand in a string.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f'the line is {json.dumps(record)[:40]}; write {{"text": ...}}')  # noqa: TRY004, TRY301
            found.append(parse(record))
        except json.JSONDecodeError as error:
            raise click.ClickException(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        except ValueError as error:
            raise click.ClickException(f"{path}:{number}: {error}") from error
    return found

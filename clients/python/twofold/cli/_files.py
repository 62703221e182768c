"""Read example files and write result files."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from twofold._types.examples import Example
from twofold.cli._conll import SUFFIXES, read_conll

T = TypeVar("T")


def read_texts(path: Path) -> list[str]:
    """Return the "text" of each JSON line of a file; other keys are ignored."""
    return _read_json_lines(path, lambda record: Example.from_dict({"text": record.get("text")}).text)


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a file: CoNLL columns if its suffix says so, otherwise JSON lines."""
    return read_conll(path) if path.suffix in SUFFIXES else _read_json_lines(path, Example.from_dict)


@contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """Open a temporary file that replaces *path* once the block has succeeded."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_json_lines(path: Path, parse: Callable[[Any], T]) -> list[T]:
    values = []
    # Split at "\n" only: a JSON string may contain U+2028 and other line separators.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f'the line is {json.dumps(record)[:40]}; write {{"text": ...}}')  # noqa: TRY004, TRY301
            values.append(parse(record))
        except json.JSONDecodeError as error:
            raise click.ClickException(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        except ValueError as error:
            raise click.ClickException(f"{path}:{number}: {error}") from error
    return values

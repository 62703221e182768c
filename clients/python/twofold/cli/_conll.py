"""Read CoNLL files: a token and its BIO tag on each line, a blank line after each sentence."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from twofold._types.examples import Example, Span

SUFFIXES = frozenset({".conll", ".bio", ".iob", ".tsv", ".txt"})
"""Suffixes of files that contain CoNLL columns."""

_LABEL = re.compile(r"#\s*(?:label|intent)\s*[:=]\s*(?P<label>.*\S)\s*")
_TAG = re.compile(r"O|[BI]-\S+")


def read_conll(path: Path) -> list[Example]:
    """
    Return one example for each sentence of a file, as `twofold-trainer init` does: tokens joined by single spaces.

    A line ``# label: X`` or ``# intent = X`` before a sentence sets its label; other comments are ignored.
    """
    try:
        return list(_sentences(path.read_text(encoding="utf-8-sig").splitlines()))
    except _LineError as error:
        raise click.ClickException(f"{path}:{error}") from error


class _LineError(ValueError):
    """An invalid line; the message begins with its number."""


def _sentences(lines: Sequence[str]) -> Iterator[Example]:
    tokens: list[str] = []
    tags: list[str] = []
    label: str | None = None
    for number, line in enumerate([*lines, ""], 1):
        columns = line.split()
        if not columns:
            if tokens:
                yield _example(tokens, tags, label)
                tokens, tags, label = [], [], None
        elif not tokens and (match := _LABEL.fullmatch(line.strip())):
            label = match["label"]
        elif columns[0] == "-DOCSTART-" or (columns[0].startswith("#") and not _TAG.fullmatch(columns[-1])):
            pass
        else:
            tags.append(_tag(columns, tags[-1] if tags else "O", number))
            tokens.append(columns[0])


def _tag(columns: Sequence[str], before: str, number: int) -> str:
    """Return the tag in the last column; raise _LineError if it cannot follow the tag *before*."""
    tag = columns[-1]
    if len(columns) < 2:
        raise _LineError(f"{number}: {tag!r} is the only column; write a token and its BIO tag")
    if not _TAG.fullmatch(tag):
        raise _LineError(f"{number}: tag {tag!r} is not a BIO tag; write O, B-type or I-type")
    if tag.startswith("I-") and before[2:] != tag[2:]:
        reason = f"a span starts with B-{tag[2:]} (BIO, also called IOB2)"
        raise _LineError(f"{number}: tag {tag!r} cannot follow {before!r}; {reason}")
    return tag


def _example(tokens: Sequence[str], tags: Sequence[str], label: str | None) -> Example:
    """Join tokens with single spaces and turn their tags into spans."""
    spans: list[Span] = []
    start = 0
    for token, tag in zip(tokens, tags, strict=True):
        end = start + len(token)
        if tag.startswith("I-"):
            spans[-1] = Span(start=spans[-1].start, end=end, type=tag[2:])
        elif tag != "O":
            spans.append(Span(start=start, end=end, type=tag[2:]))
        start = end + 1
    return Example(text=" ".join(tokens), label=label, entities=tuple(spans))

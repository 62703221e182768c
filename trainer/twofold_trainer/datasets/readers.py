"""Read annotated texts from JSON lines, CoNLL columns or the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example, Span, check_example, read_examples

JSON_LINES = frozenset({".jsonl", ".json", ".ndjson"})
CONLL = frozenset({".conll", ".bio", ".iob", ".tsv", ".txt"})
HUB = "hf:"

_LABEL = re.compile(r"#\s*(?:label|intent)\s*[:=]\s*(?P<label>.*\S)\s*")
_TAG = re.compile(r"O|[BI]-\S+")
_SPLIT = re.compile(r"(train|validation|valid|dev|test|all)(\b|_|$)")


def read_source(source: str) -> list[Example]:
    """Read all examples of a file or of ``hf:name[:config][:split]``.

    Raises ExampleError that names the source, the line, the field and what to write instead.
    """
    if source.startswith(HUB):
        examples = list(read_dataset(source.removeprefix(HUB)))
    elif Path(source).suffix in JSON_LINES:
        examples = list(read_examples(source))
    elif Path(source).suffix in CONLL:
        examples = list(read_conll(source))
    else:
        known = ", ".join(sorted(JSON_LINES | CONLL))
        raise _error(
            source, 0, "", f"unknown file extension; use {known}, or {HUB}name for a data set of the Hugging Face Hub"
        )
    if not examples:
        raise _error(source, 0, "", "contains no examples")
    return examples


# -- CoNLL ------------------------------------------------------------------------------------------------------


def read_conll(path: str) -> Iterator[Example]:
    """Yield the sentences of a column file: token first, BIO tag last, a blank line after each sentence.

    A line ``# label: X`` or ``# intent = X`` before a sentence gives its label; other comments are ignored.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, 0, "", f"cannot be read as UTF-8: {error}") from error
    tokens: list[str] = []
    tags: list[str] = []
    label: str | None = None
    first_line = 0
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip():
            if tokens:
                yield check_example(_sentence(tokens, tags, label), source=path, line=first_line)
                tokens, tags, label = [], [], None
            continue
        columns = line.split()
        if not tokens:
            first_line = number
            if match := _LABEL.fullmatch(line.strip()):
                label = match["label"]
                continue
        if columns[0] == "-DOCSTART-" or (columns[0].startswith("#") and not _TAG.fullmatch(columns[-1])):
            continue
        if len(columns) < 2:
            raise _error(path, number, "tag", f"{line.strip()!r} has one column; write a token and its BIO tag")
        _check_tag(columns[-1], tags[-1] if tags else "O", path, number)
        tokens.append(columns[0])
        tags.append(columns[-1])


def _check_tag(tag: str, previous: str, source: str, line: int) -> None:
    """Raise ExampleError if the tag is not a BIO tag, or is an I tag that does not continue a span of its type."""
    if not _TAG.fullmatch(tag):
        raise _error(source, line, "tag", f"{tag!r} is not a BIO tag; use O, B-type or I-type")
    if tag.startswith("I-") and previous[2:] != tag[2:]:
        reason = f"{tag!r} cannot follow {previous!r}; begin a span with B-{tag[2:]} (BIO, also called IOB2)"
        raise _error(source, line, "tag", reason)


def _sentence(tokens: Sequence[str], tags: Sequence[str], label: str | None) -> Example:
    """Join tokens by single spaces and turn tags into spans."""
    spans: list[Span] = []
    position = 0
    for token, tag in zip(tokens, tags, strict=True):
        end = position + len(token)
        if tag.startswith("B-"):
            spans.append(Span(start=position, end=end, type=tag[2:]))
        elif tag.startswith("I-"):
            spans[-1] = Span(start=spans[-1].start, end=end, type=tag[2:])
        position = end + 1
    return Example(text=" ".join(tokens), label=label, entities=tuple(spans))


# -- datasets ---------------------------------------------------------------------------------------------------

TEXT_COLUMNS = ("text", "sentence", "utterance", "query")
TOKEN_COLUMNS = ("tokens", "words")
LABEL_COLUMNS = ("label", "intent")
TAG_COLUMNS = ("ner_tags", "tags")


def read_dataset(name: str) -> Iterator[Example]:
    """Yield the rows of ``name[:config][:split]``; the default split is "train".

    The features of the data set define the names of classes and tags.
    """
    source = HUB + name
    try:
        import datasets  # noqa: PLC0415 -- an optional extra.
    except ImportError as error:
        raise _error(source, 0, "", "needs an extra; run pip install 'twofold-service[datasets]'") from error
    path, config, split = parse_name(name)
    try:
        rows = datasets.load_dataset(path, config, split=split)
    except Exception as error:  # The library raises any error of its file readers.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _error(source, 0, "", f"cannot be loaded: {reason}") from error
    yield from _rows(rows, rows.features, source)


def parse_name(name: str) -> tuple[str, str | None, str]:
    """Return (path, configuration, split); a single part after the path is a split if it looks like one."""
    path, *rest = re.split(r":(?![^\[]*\])", name)  # Not at the colon of a slice such as train[:10%].
    if len(rest) == 1 and not _SPLIT.match(rest[0]):
        return path, rest[0], "train"
    split = rest.pop() if rest else "train"
    return path, ":".join(rest) or None, split or "train"


def _rows(rows: Iterable[dict[str, Any]], features: Any, source: str) -> Iterator[Example]:
    text = _first(TEXT_COLUMNS, features)
    tokens = _first(TOKEN_COLUMNS, features)
    label = _first(LABEL_COLUMNS, features)
    tags = _first(TAG_COLUMNS, features) if tokens else None
    if not (text or tokens) or not (label or tags):
        needed = f"one of {TEXT_COLUMNS + TOKEN_COLUMNS} and one of {LABEL_COLUMNS + TAG_COLUMNS}"
        raise _error(source, 0, "", f"has the columns {tuple(features)}; it needs {needed}")
    for number, row in enumerate(rows, 1):
        name = _name(row[label], features[label], source, number, label) if label else None
        if not (tokens and tags):
            content = row[text] if text else " ".join(row[tokens or ""])
            yield check_example(Example(text=content, label=name), source=source, line=number)
            continue
        element = getattr(features[tags], "feature", features[tags])
        names = [_name(value, element, source, number, tags) or "O" for value in row[tags]]
        if len(names) != len(row[tokens]):
            raise _error(source, number, tags, f"has {len(names)} tags for {len(row[tokens])} tokens")
        for previous, tag in zip(["O", *names], names, strict=False):
            _check_tag(tag, previous, source, number)
        yield check_example(_sentence(row[tokens], names, name), source=source, line=number)


def _first(columns: Sequence[str], features: Any) -> str | None:
    """Return the first of the columns that the data set has; None if it has none of them."""
    return next((name for name in columns if name in features), None)


def _name(value: Any, feature: Any, source: str, line: int, field: str) -> str | None:
    """Return the name of a class, or None if the row is not annotated: `datasets` stores this as None or -1."""
    if value is None or value == -1:
        return None
    if isinstance(value, str):
        return value
    if hasattr(feature, "int2str"):
        return str(feature.int2str(value))
    raise _error(source, line, field, f"{value!r} is a number without a name; give the column a ClassLabel feature")


def _error(source: str, line: int, field: str, reason: str) -> ExampleError:
    return ExampleError(source=source, line=line, field=field, reason=reason)

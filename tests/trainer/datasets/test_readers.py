"""Readers of three formats, and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example, Span
from twofold_trainer.datasets.readers import read_source

CONLL = """-DOCSTART- -X- O

# label: book_flight
# a comment
fly NN O
to IN O
New NN B-city
York NN I-city

# intent = weather
rain O
# O
Oslo B-city
Paris B-city

alone O
"""
EXPECTED = [
    Example(text="fly to New York", label="book_flight", entities=(Span(start=7, end=15, type="city"),)),
    Example(
        text="rain # Oslo Paris",
        label="weather",
        entities=(Span(start=7, end=11, type="city"), Span(start=12, end=17, type="city")),
    ),
    Example(text="alone", entities=()),
]


def test_conll_is_read(tmp_path: Path) -> None:
    """Tokens are joined by single spaces, tags become spans, and comment lines give labels; a final blank line is optional."""
    path = tmp_path / "train.conll"
    path.write_text(CONLL)

    assert read_source(str(path)) == EXPECTED
    path.write_text(CONLL.rstrip("\n"))
    assert read_source(str(path)) == EXPECTED


def test_json_lines_are_read(tmp_path: Path) -> None:
    """JSON lines distinguish unannotated texts from texts without entities."""
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"text":"hi","label":"greet"}\n\n{"text":"in Oslo","entities":[{"start":3,"end":7,"type":"city"}]}\n'
    )

    assert read_source(str(path)) == [
        Example(text="hi", label="greet"),
        Example(text="in Oslo", entities=(Span(start=3, end=7, type="city"),)),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '\ufeff{"text":"to Oslo","label":"fly","entities":[{"start":3,"end":7,"type":"city"}]}\r\n\r\n'),
        ("a.conll", "\ufeff# label: fly\r\nto O\r\nOslo B-city\r\n\r\n"),
    ],
)
def test_windows_files_are_read(tmp_path: Path, name: str, content: str) -> None:
    """A byte order mark and carriage returns, as editors on Windows write them, are not part of an example."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")

    assert read_source(str(path)) == [
        Example(text="to Oslo", label="fly", entities=(Span(start=3, end=7, type="city"),))
    ]


@pytest.mark.parametrize(
    ("name", "content", "line", "field", "reason"),
    [
        ("a.jsonl", '{"text":"hi"}\n{"text": 3}\n', 2, "text", "Expected `str`, got `int`"),
        ("a.jsonl", '{"text":"hi"}\n\n{"label":"x"}\n', 3, "", "missing required field `text`"),
        ("a.jsonl", "text\n", 1, "", "is not a JSON object"),
        ("a.jsonl", '{"text":"  "}\n', 1, "text", "is empty"),
        ("a.jsonl", '{"text":"hi","label":" x"}\n', 1, "label", "white space"),
        ("a.jsonl", '{"text":"hi","entities":[{"start":0,"end":3,"type":"x"}]}\n', 1, "entities[0].end", "at most"),
        ("a.jsonl", '{"text":"hi","entities":[{"start":2,"end":3,"type":"x"}]}\n', 1, "entities[0].start", "outside"),
        (
            "a.jsonl",
            '{"text":"hi you","entities":[{"start":0,"end":4,"type":"x"},{"start":3,"end":6,"type":"y"}]}\n',
            1,
            "entities[1].start",
            "must not overlap",
        ),
        ("a.jsonl", "", 0, "", "contains no examples"),
        ("a.conll", "fly O\nto\n", 2, "tag", "has one column"),
        ("a.conll", "fly O\nParis LOC\n", 2, "tag", "'LOC' is not a BIO tag"),
        ("a.conll", "fly O\n\nParis I-city\n", 3, "tag", "cannot follow 'O'; begin a span with B-city"),
        ("a.conll", "Paris B-city\nnow I-date\n", 2, "tag", "cannot follow 'B-city'"),
        ("a.conll", "\n\n", 0, "", "contains no examples"),
        ("a.csv", "a,b\n", 0, "", "unknown file extension"),
    ],
)
def test_a_bad_line_is_named(*, tmp_path: Path, name: str, content: str, line: int, field: str, reason: str) -> None:
    """An error about an invalid line names the file, the line, the field and the fix."""
    path = tmp_path / name
    path.write_text(content)

    with pytest.raises(ExampleError) as refused:
        read_source(str(path))

    assert (refused.value.source, refused.value.line, refused.value.field) == (str(path), line, field)
    assert reason in refused.value.reason


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.conll"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """An error about a missing file names it."""
    with pytest.raises(ExampleError, match=r"missing\.\w+: .*cannot be read"):
        read_source(str(tmp_path / name))


def test_a_missing_library_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library, the error says which extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)

    with pytest.raises(ExampleError, match=r"pip install 'twofold-service\[datasets\]'"):
        read_source("hf:conll2003")


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("a/b", ("a/b", None, "train")),
        ("a/b:test", ("a/b", None, "test")),
        ("a/b:train[:10%]", ("a/b", None, "train[:10%]")),
        ("a/b:en", ("a/b", "en", "train")),
        ("a/b:en:validation", ("a/b", "en", "validation")),
    ],
)
def test_names_of_data_sets(name: str, parsed: tuple[str, str | None, str]) -> None:
    """A configuration and a split may follow the path; both are optional."""
    from twofold_trainer.datasets.readers import parse_name

    assert parse_name(name) == parsed


class _Classes:
    """A fake of `datasets.ClassLabel`."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def int2str(self, value: int) -> str:
        return self.names[value]


@pytest.mark.parametrize("listed", [False, True])
def test_rows_with_class_features_are_read(listed: bool) -> None:
    """Class and tag numbers become names, whether the feature is wrapped in a list or not; -1 means unannotated."""
    from twofold_trainer.datasets.readers import _rows

    tags = _Classes("O", "B-city", "I-city")
    features = {
        "tokens": None,
        "ner_tags": type("List", (), {"feature": tags})() if listed else tags,
        "intent": _Classes("go"),
    }
    rows = [
        {"tokens": ["to", "New", "York"], "ner_tags": [0, 1, 2], "intent": 0},
        {"tokens": ["hi"], "ner_tags": [0], "intent": -1},
    ]

    assert list(_rows(rows, features, "hf:x")) == [
        Example(text="to New York", label="go", entities=(Span(start=3, end=11, type="city"),)),
        Example(text="hi", entities=()),
    ]


@pytest.mark.parametrize(
    ("features", "row", "line", "reason"),
    [
        ({"body": None}, {"body": "x"}, 0, r"has the columns \('body',\)"),
        ({"text": None, "label": None}, {"text": "x", "label": 4}, 1, "a number without a name"),
        ({"tokens": None, "tags": None}, {"tokens": ["a", "b"], "tags": ["O"]}, 1, "has 1 tags for 2 tokens"),
        ({"tokens": None, "tags": None}, {"tokens": ["a", "b"], "tags": ["O", "I-x"]}, 1, "cannot follow"),
        ({"text": None, "label": None}, {"text": " ", "label": "x"}, 1, "is empty"),
    ],
)
def test_a_bad_row_is_named(features: dict, row: dict, line: int, reason: str) -> None:
    """An error about an invalid row names its number and the reason."""
    from twofold_trainer.datasets.readers import _rows

    with pytest.raises(ExampleError, match=reason) as refused:
        list(_rows([row], features, "hf:x"))

    assert refused.value.line == line


def test_a_real_data_set_is_read(tmp_path: Path) -> None:
    """A data set that the library built and stored is read with the names of its features."""
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-city", "I-city"])),
            "label": datasets.ClassLabel(names=["go", "stay"]),
        }
    )
    rows = {"tokens": [["to", "Oslo"], ["hi"]], "ner_tags": [[0, 1], [0]], "label": [1, 0]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set" / "train.parquet"))

    assert read_source(f"hf:{tmp_path / 'set'}") == [
        Example(text="to Oslo", label="stay", entities=(Span(start=3, end=7, type="city"),)),
        Example(text="hi", label="go", entities=()),
    ]
    with pytest.raises(ExampleError, match="cannot be loaded"):
        read_source(f"hf:{tmp_path / 'set'}:nothing")

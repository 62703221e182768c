"""Examples: the one form on disk, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example, Span, parse_example, read_examples, write_examples
from twofold_checkpoint.memory import Memory, balanced_sample, read_memory, split_by_hash, write_memory

BAD = [
    ('{"text": "a"', "", "not a JSON object"),
    ("[]", "", "Expected `object`"),
    ('{"label": "a"}', "", "missing required field `text`"),
    ('{"text": 3}', "text", "Expected `str`"),
    ('{"text": " "}', "text", "is empty"),
    ('{"text": "a", "label": ""}', "label", "is empty"),
    ('{"text": "a", "label": 1}', "label", "Expected `str | null`"),
    ('{"text": "ab", "entities": [{"start": 0, "end": 3, "type": "t"}]}', "entities[0].end", "at most the text's 2"),
    ('{"text": "ab", "entities": [{"start": 2, "end": 3, "type": "t"}]}', "entities[0].start", "outside the text"),
    ('{"text": "ab", "entities": [{"start": -1, "end": 1, "type": "t"}]}', "entities[0].start", "outside the text"),
    ('{"text": "ab", "entities": [{"start": 1, "end": 1, "type": "t"}]}', "entities[0].end", "must be above start"),
    ('{"text": "ab", "entities": [{"start": 0, "end": "1", "type": "t"}]}', "entities[0].end", "Expected `int`"),
    ('{"text": "ab", "entities": [{"start": 0, "end": 1, "type": ""}]}', "entities[0].type", "is empty"),
    (
        '{"text": "abc", "entities": [{"start": 1, "end": 3, "type": "t"}, {"start": 0, "end": 2, "type": "u"}]}',
        "entities[0].start",
        "must not overlap",
    ),
]


@pytest.mark.parametrize(("line", "field", "reason"), BAD)
def test_a_bad_line_is_refused_by_file_line_and_field(tmp_path: Path, line: str, field: str, reason: str) -> None:
    """A malformed line stops the reading and is named by file, number, field and reason."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n", encoding="utf-8")

    with pytest.raises(ExampleError) as caught:
        list(read_examples(path))

    assert (caught.value.source, caught.value.line, caught.value.field) == (str(path), 3, field)
    assert reason in caught.value.reason


def test_a_file_that_is_not_there_is_named() -> None:
    """A missing file is an ExampleError that names it."""
    with pytest.raises(ExampleError, match=r"none\.jsonl: cannot be read"):
        list(read_examples("none.jsonl"))


def test_not_annotated_differs_from_annotated_as_nothing() -> None:
    """An absent or null list means not annotated; an empty one means that there is no entity."""
    absent, null, empty = (
        parse_example(line, source="s", line=1)
        for line in ('{"text": "a"}', '{"text": "a", "entities": null}', '{"text": "a", "entities": []}')
    )

    assert absent.entities is None
    assert null.entities is None
    assert empty.entities == ()


texts = st.text(min_size=1, max_size=40).filter(str.strip)


@st.composite
def annotated(draw: st.DrawFn) -> Example:
    """Draw an example with sorted spans that do not overlap."""
    text = draw(texts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = tuple(
        Span(start=start, end=end, type="t") for start, end in zip(cuts[::2], cuts[1::2], strict=False) if end > start
    )
    return Example(text=text, label=draw(st.none() | st.just("l")), entities=draw(st.none() | st.just(spans)))


@given(st.lists(annotated(), max_size=8))
def test_examples_survive_the_disk(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    """Written examples are read back unchanged, for any Unicode."""
    path = tmp_path_factory.mktemp("examples") / "e.jsonl"

    write_examples(path, examples)

    assert list(read_examples(path)) == examples


@given(st.lists(annotated(), max_size=8))
def test_memory_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    """The three parts of a memory are read back unchanged."""
    path = tmp_path_factory.mktemp("memory") / "m.jsonl"
    memory = Memory(rehearsal=tuple(examples[:3]), dev=tuple(examples[3:5]), gate=tuple(examples[5:]))

    write_memory(path, memory)

    assert read_memory(path) == memory


def test_halves_depend_only_on_the_text() -> None:
    """The half of a text depends only on its normalised text."""
    examples = [Example(text=f"text {number}") for number in range(100)]
    first, second = split_by_hash(examples)

    again, _ = split_by_hash([Example(text=f"  TEXT   {number}") for number in reversed(range(100))])

    assert {example.text.split()[1] for example in first} == {example.text.split()[1] for example in again}
    assert len(first) + len(second) == 100
    assert 30 < len(first) < 70


def test_a_sample_is_balanced_over_labels_and_types() -> None:
    """A rare label keeps its examples while a frequent one loses most of its own."""
    frequent = [Example(text=f"f{number}", label="often") for number in range(90)]
    rare = [Example(text=f"r{number}", label="rarely") for number in range(5)]

    sample = balanced_sample(frequent + rare, 20, seed=1)

    assert len(sample) == 20
    assert sum(item.label == "rarely" for item in sample) == 5
    assert sample == balanced_sample(frequent + rare, 20, seed=1)
    assert balanced_sample(rare, 20, seed=1) == tuple(rare)

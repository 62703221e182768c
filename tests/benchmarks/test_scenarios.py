"""Sources: the eight selection steps, in order, on small files."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.adaptation.scenarios import ScenarioError, Source, gather, read_scenarios, resolve
from benchmarks.adaptation.sizes import choose_size

pytestmark = pytest.mark.slow

LINES = [
    ("play abba", "play", [(5, 9, "artist")]),
    ("rain in oslo", "weather", [(8, 12, "city")]),
    ("play now", "play", []),
    ("book oslo today", "book", [(5, 9, "city"), (10, 15, "date")]),
    ("play bowie today", "play", [(5, 10, "artist"), (11, 16, "date")]),
    ("hm", None, []),
    ("rain today", "weather", [(5, 10, "date")]),
]
TEXTS = [text for text, _, _ in LINES]
BOTH = ["label", "entities"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with one data set."""
    return write(tmp_path / "sets", LINES)


def write(root: Path, lines) -> Path:
    """Write a data set."""
    root.mkdir(parents=True)
    rows = [
        {"text": text, "label": label, "entities": [{"start": a, "end": b, "type": name} for a, b, name in spans]}
        for text, label, spans in lines
    ]
    (root / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def source(**settings) -> Source:
    """Return a source as in the scenario file."""
    return msgspec.convert({"file": "lines.jsonl", "use": BOTH, **settings}, Source)


CASES = {
    "all lines, in the file's order": ({}, [0, 1, 2, 3, 4, 5, 6]),
    "labels": ({"labels": ["weather", "book"]}, [1, 3, 6]),
    "labels leave out what has none": ({"labels": ["play"]}, [0, 2, 4]),
    "excluded labels keep what has none": ({"exclude_labels": ["play", "book"]}, [1, 5, 6]),
    "a label outside the map drops the line": ({"label_map": {"book": "b", "weather": "w"}}, [1, 3, 6]),
    "labels are chosen by their old names": ({"labels": ["book"], "label_map": {"book": "play"}}, [3]),
    "lines without an entity": ({"require_entities": True}, [0, 1, 3, 4, 6]),
    "lines left without an entity": ({"require_entities": True, "entity_types": ["date"]}, [3, 4, 6]),
    "types are chosen by their old names": (
        {"require_entities": True, "entity_types": ["city"], "entity_map": {"city": "date", "date": "x"}},
        [1, 3],
    ),
    "per label": ({"per_label": 1}, [0, 1, 3, 5]),
    "skip per label": ({"skip_per_label": 1}, [2, 4, 6]),
    "skip and take per label": ({"skip_per_label": 1, "per_label": 1}, [2, 6]),
    "per label counts new names": ({"label_map": {"play": "x", "weather": "x"}, "per_label": 2}, [0, 1]),
    "per label counts lines with entities": ({"require_entities": True, "per_label": 1}, [0, 1, 3]),
    "first": ({"first": 2}, [0, 1]),
    "skip": ({"skip": 5}, [5, 6]),
    "skip and first": ({"skip": 1, "first": 2}, [1, 2]),
    "skip and first count what the labels leave": ({"skip_per_label": 1, "skip": 1, "first": 1}, [4]),
    "none per label": ({"per_label": 0}, []),
}


@pytest.mark.parametrize(("settings", "lines"), CASES.values(), ids=CASES)
def test_a_source_chooses_lines(root: Path, settings: dict, lines: list[int]) -> None:
    """Each step selects lines by its rule, after the steps before it."""
    actual = resolve(root, source(n=len(lines), **settings))
    assert [example.text for example in actual] == [TEXTS[line] for line in lines]


TYPES = {
    "as they are": ({}, {"artist": "artist", "city": "city", "date": "date"}),
    "chosen": ({"entity_types": ["date", "city"]}, {"city": "city", "date": "date"}),
    "mapped": ({"entity_map": {"artist": "name", "city": "name"}}, {"artist": "name", "city": "name"}),
    "chosen, then mapped": (
        {"entity_types": ["city"], "entity_map": {"city": "place", "date": "x"}},
        {"city": "place"},
    ),
}


@pytest.mark.parametrize(("settings", "names"), TYPES.values(), ids=TYPES)
def test_entities_keep_their_places_under_new_names(root: Path, settings: dict, names: dict[str, str]) -> None:
    """Entities of other types are removed, and every line states its annotated types."""
    for (_, _, spans), example in zip(LINES, resolve(root, source(n=len(LINES), **settings)), strict=True):
        kept = [(start, end, names[name]) for start, end, name in spans if name in names]
        assert [(span.start, span.end, span.type) for span in example.entities] == kept
        assert example.annotated_types == tuple(sorted(set(names.values())))


@pytest.mark.parametrize("use", [["label"], ["entities"], BOTH])
def test_unused_annotations_are_none(root: Path, use: list[str]) -> None:
    """An unused annotation is None, not empty."""
    for (_, label, spans), example in zip(LINES, resolve(root, source(n=len(LINES), use=use)), strict=True):
        assert example.label == (label if "label" in use else None)
        assert (example.entities is None) == ("entities" not in use)
        assert len(example.entities or ()) == (len(spans) if "entities" in use else 0)
        assert (example.annotated_types is None) == ("entities" not in use)


def test_types_are_those_of_the_annotation_and_not_of_the_lines_that_are_left(root: Path) -> None:
    """A source of a single line still has all types of its data set as annotated types."""
    (example,) = resolve(root, source(n=1, first=1))
    assert example.annotated_types == ("artist", "city", "date")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n": 6}, "expected n 6, selected 7"), ({"n": 7, "entities": 8}, "expected entities 8, selected 7")],
)
def test_counts_are_checked(root: Path, settings: dict, message: str) -> None:
    """An error about a wrong count names both counts."""
    with pytest.raises(ScenarioError, match=message):
        resolve(root, source(**settings))
    assert len(resolve(root, source(n=7, entities=7))) == 7
    # Entities that are not used are not counted.
    assert len(resolve(root, source(n=7, entities=99, use=["label"]))) == 7


def test_a_cap_counts_over_all_sources_of_a_list(root: Path) -> None:
    """The sources of a list are concatenated, and the cap applies after all steps."""
    two = [source(n=1, labels=["book"]), source(n=3, labels=["play"])]
    assert [result.text for result in gather(root, two, 2)] == [TEXTS[3], TEXTS[0]]
    assert len(gather(root, two)) == 4


@given(
    labels=st.lists(st.sampled_from("abc"), max_size=30),
    skipped=st.integers(0, 4),
    taken=st.integers(0, 4),
    skip=st.integers(0, 9),
    first=st.integers(0, 9),
)
def test_counting_out_is_slicing_each_label_and_then_the_rest(
    tmp_path_factory: pytest.TempPathFactory, *, labels: list[str], skipped: int, taken: int, skip: int, first: int
) -> None:
    """Steps 5 and 6 are slices, first of each label's lines, then of the remaining lines in file order."""
    root = write(tmp_path_factory.mktemp("sets") / "x", [(f"t{n}", label, []) for n, label in enumerate(labels)])
    of_label = {name: [n for n, label in enumerate(labels) if label == name] for name in "abc"}
    kept = sorted(n for lines in of_label.values() for n in lines[skipped : skipped + taken])[skip : skip + first]
    settings = {"skip_per_label": skipped, "per_label": taken, "skip": skip, "first": first}
    actual = resolve(root, source(n=len(kept), **settings))
    assert [example.text for example in actual] == [f"t{n}" for n in kept]


def scenario(**changes) -> dict:
    """Return a scenario as in the file."""
    item = {"file": "lines.jsonl", "use": BOTH, "n": 7}
    return {
        "name": "s",
        "kind": "new",
        "protected_head": "ner",
        "adapted_head": "classifier",
        "label_space": "extend",
        "base": {"train": [item], "dev": []},
        "steps": [{"name": "a", "train": [item], "dev": [], "eval": [item]}],
        "eval": {"protected": [item], "retained": []},
        "why": "",
        **changes,
    }


def write_file(root: Path, *scenarios: dict, **changes) -> None:
    """Write scenarios.json."""
    quick = {"train_first": 3, "dev_first": 2, "eval_first": 1}
    written = {"version": 1, "quick": quick, "scenarios": scenarios, **changes}
    (root / "scenarios.json").write_text(json.dumps(written), encoding="utf-8")


def test_a_file_is_read_with_its_caps(root: Path) -> None:
    """The caps of a short run are those of the file, and limit both the base's lists and the steps' lists."""
    write_file(root, scenario())
    actual = read_scenarios(root)
    size = choose_size("quick", actual.quick)
    assert size.base == size.step == actual.quick
    (item,) = actual.scenarios
    assert len(gather(root, item.steps[0].train, size.step.train_first)) == 3


STRANGE_STEP = {"file": "lines.jsonl", "use": BOTH, "n": 7, "per_line": 1}
STRANGE_USE = {"file": "lines.jsonl", "use": ["spans"], "n": 7}
REJECTED = {
    "an unknown step of a source": (scenario(base={"train": [STRANGE_STEP], "dev": []}), {}, "per_line"),
    "an unknown use": (scenario(eval={"protected": [STRANGE_USE], "retained": []}), {}, "spans"),
    "one head for both": (scenario(protected_head="classifier"), {}, "both heads are 'classifier'"),
    "an unknown head": (scenario(protected_head="tagger"), {}, "tagger"),
    "a newer version": (scenario(), {"version": 2}, "version 2"),
}


@pytest.mark.parametrize(("entry", "changes", "message"), REJECTED.values(), ids=REJECTED)
def test_a_file_with_unknown_content_is_rejected(root: Path, entry: dict, changes: dict, message: str) -> None:
    """An unknown selection step, head or version is an error."""
    write_file(root, entry, **changes)
    with pytest.raises(ScenarioError, match=message):
        read_scenarios(root)


def test_a_missing_file_is_named(root: Path) -> None:
    """The error names the missing scenario file or data set."""
    with pytest.raises(ScenarioError, match=r"scenarios\.json"):
        read_scenarios(root)
    with pytest.raises(ScenarioError, match=r"other\.jsonl"):
        resolve(root, msgspec.convert({"file": "other.jsonl", "use": BOTH, "n": 1}, Source))

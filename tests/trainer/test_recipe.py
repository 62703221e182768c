"""Metrics, splits and the recipe, all pure functions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models
from twofold_checkpoint.decoding import Entity
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.memory import Memory, normalize_text
from twofold_checkpoint.protocol.job import Hyperparameters
from twofold_trainer import recipe
from twofold_trainer.datasets.batching import TrainingPool, batches
from twofold_trainer.datasets.splits import add_to_memory, set_aside, split
from twofold_trainer.planning.stages import blocks_per_stage
from twofold_trainer.scoring.scores import SpanCounts, accuracy, count_spans, span_f1, span_hits


def entity(start: int, end: int, kind: str) -> Entity:
    """Return a predicted span."""
    return Entity(start=start, end=end, type=kind, score=1.0)


@pytest.mark.parametrize(
    ("predicted", "expected", "annotated", "counts"),
    [
        ([], [], None, SpanCounts(0, 0, 0)),
        ([entity(0, 2, "a")], [Span(start=0, end=2, type="a")], None, SpanCounts(1, 1, 1)),
        ([entity(0, 3, "a")], [Span(start=0, end=2, type="a")], None, SpanCounts(0, 1, 1)),
        ([entity(0, 2, "b")], [Span(start=0, end=2, type="a")], None, SpanCounts(0, 1, 1)),
        ([entity(0, 2, "b")], [Span(start=0, end=2, type="a")], ("a",), SpanCounts(0, 0, 1)),
        ([entity(0, 2, "a"), entity(3, 4, "b")], [Span(start=0, end=2, type="a")], ("a",), SpanCounts(1, 1, 1)),
    ],
)
def test_spans_are_compared_exactly(
    predicted: list, expected: list, annotated: tuple | None, counts: SpanCounts
) -> None:
    """A span counts as correct if start, end and type are correct; spans of unannotated types do not count."""
    assert count_spans(predicted, expected, annotated) == counts
    hits = span_hits(predicted, expected, annotated)
    assert hits == [(1.0, 1)] * counts.right + [(1.0, 0)] * (counts.predicted - counts.right)


def test_scores_are_micro_averages() -> None:
    """Accuracy is the share of correct answers, F1 is computed over the spans of all texts, and without examples there is no score."""
    assert accuracy([1, 1, 0, 1]).value == 0.75
    assert span_f1([SpanCounts(1, 2, 1), SpanCounts(1, 1, 3)]).value == pytest.approx(2 * 2 / (3 + 4))
    assert span_f1([SpanCounts(0, 0, 0)]).value == 1.0
    assert accuracy([]) is None
    assert span_f1([]) is None


class Fake:
    """A training text of which only the length matters."""

    def __init__(self, size: int) -> None:
        self.encoding = type("E", (), {"ids": range(size)})()


def texts(examples: tuple[Example, ...]) -> set[str]:
    """Return the normalised texts."""
    return {normalize_text(example.text) for example in examples}


@pytest.mark.parametrize("count", [4, 5, 9, 40, 200])
def test_without_dev_examples_a_part_is_set_aside(count: int) -> None:
    """Even of few examples, some train, some stop early and some are for the gate, and no text is in two parts."""
    given = tiny_models.examples(count)
    parts = split(given, None, Memory(), held_out=0.2)

    assert parts.train
    assert parts.dev
    assert parts.gate
    assert len(parts.train) + len(parts.dev) + len(parts.gate) == count
    assert not texts(parts.train) & (texts(parts.dev) | texts(parts.gate))
    assert not texts(parts.dev) & texts(parts.gate)
    assert split(given[::-1], None, Memory(), held_out=0.2).gate == parts.gate[::-1] or count < 10


def test_held_out_texts_do_not_depend_on_the_order() -> None:
    """The order of the examples does not affect which are held out, and all copies of a text stay together."""
    given = [*tiny_models.examples(50), *tiny_models.examples(50)]
    kept, aside = set_aside(given, 0.2)

    assert {example.text for example in set_aside(given[::-1], 0.2)[1]} == {example.text for example in aside}
    assert not {example.text for example in kept} & {example.text for example in aside}
    assert len(aside) == 20


def test_held_out_texts_never_train() -> None:
    """A text in the memory keeps its part, and a text in both train and dev is held out."""
    first = split(tiny_models.examples(60), None, Memory(), held_out=0.2)
    memory = add_to_memory(Memory(), first, seed=0)
    swapped = split([*first.gate, *first.dev], first.train, memory, held_out=0.2)

    assert texts(swapped.train) == texts(first.train)
    assert texts(swapped.gate) == texts(first.gate)
    assert swapped.moved == 60
    both = split(first.train, first.train[:10], Memory(), held_out=0.2)
    assert not texts(both.train) & texts(first.train[:10])


def test_memory_grows_within_its_bounds_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the memory is bounded and shared by old and new examples, and a text annotated twice keeps both annotations."""
    monkeypatch.setattr("twofold_trainer.datasets.splits.MEMORY_REHEARSAL", 40)
    old = add_to_memory(Memory(), split(tiny_models.examples(60), None, Memory(), held_out=0.2), seed=0)
    again = replace(
        split(tiny_models.intents(60), None, Memory(), held_out=0.2),
        train=(*tiny_models.intents(30), Example(text=old.rehearsal[0].text, label="x")),
    )
    new = add_to_memory(old, again, seed=0)

    assert len(new.rehearsal) == 40
    assert texts(old.gate) < texts(new.gate)
    assert not texts(new.rehearsal) & (texts(new.gate) | texts(new.dev)) - texts(again.train)
    joined = [item for item in add_to_memory(old, again, seed=0).rehearsal if item.label == "x"]
    assert all(answer.entities == old.rehearsal[0].entities for answer in joined)


def test_requested_hyperparameters_override_the_defaults() -> None:
    """Every hyperparameter can be requested, including 0, and the resolved values are reported."""
    default = recipe.default_recipe("auto", "ner", blocks=6, examples=1000, hidden_size=384)
    requested = Hyperparameters(epochs=7, rehearsal_ratio=0.0, unfrozen_blocks=99)
    resolved = recipe.apply_hyperparameters(requested, default, blocks=6)

    assert (resolved.epochs, resolved.probe_epochs) == (7, 7)
    assert (resolved.rehearsal_ratio, resolved.fork_rehearsal_ratio) == (0.0, 0.0)
    assert resolved.unfrozen_blocks == 6
    assert None not in [
        getattr(recipe.to_hyperparameters(resolved), name) for name in Hyperparameters.__struct_fields__
    ]


@pytest.mark.parametrize(
    ("examples", "ratio", "fork_ratio", "step"),
    [
        (1500, 1.0, 0.5, (16, 16, 8)),
        (600, 1.0, 0.75, (16, 16, 12)),
        (450, 1.0, 1.0, (16, 16, 16)),
        (225, 2.0, 2.0, (5, 10, 10)),
        (150, 3.0, 3.0, (4, 12, 12)),
        (8, 3.0, 3.0, (4, 12, 12)),
    ],
)
def test_few_new_examples_meet_more_rehearsed_ones(
    examples: int, ratio: float, fork_ratio: float, step: tuple[int, int, int]
) -> None:
    """An epoch rehearses 450 texts, but at most three and at least one per new text, or half a text in a fork."""
    default = recipe.default_recipe("auto", "ner", blocks=6, examples=examples, hidden_size=384)
    new, old = (tuple(Fake(7) for _ in range(size)) for size in (examples, 3 * examples))

    assert (default.rehearsal_ratio, default.fork_rehearsal_ratio) == (ratio, fork_ratio)
    assert default.batch_size == step[0]
    for item, remembered in ((ratio, step[1]), (fork_ratio, step[2])):
        steps = list(TrainingPool(new, old, item).epoch(default.batch_size, random.Random(0)))
        assert len(steps) == TrainingPool(new).steps(default.batch_size)
        assert max(len(batch) for batch, _ in steps) == step[0]
        assert max(len(batch) for _, batch in steps) == remembered
        assert sum(len(batch) for _, batch in steps) == round(item * examples)


def test_where_nothing_is_remembered_steps_have_more_new_texts() -> None:
    """A step has 32 texts with or without rehearsal, and at least 24 in a fork."""
    sizes = {
        mode: recipe.default_recipe("auto", "ner", blocks=6, examples=1500, hidden_size=384, remembers=mode).batch_size
        for mode in ("examples", "statistics", "none")
    }
    assert sizes == {"examples": 16, "statistics": 32, "none": 32}


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [("all", ()), ("backbone", (0,)), ("head", (0, 3)), ("staged", (0, 2, 3, 4, 5, 6)), ("auto", (0,))],
)
def test_each_mode_has_its_rungs(freeze: str, expected: tuple[int, ...]) -> None:
    """Every mode starts with the heads and then unfreezes blocks; AUTO chooses its later stages after the probe."""
    assert blocks_per_stage(freeze, blocks=6, unfrozen=3) == expected


def test_an_epoch_holds_every_new_example_and_its_share_of_old_ones() -> None:
    """Batches contain each text once, grouped by length, and the same seed gives the same order."""
    new, old = tuple(Fake(size + 9) for size in range(20)), tuple(Fake(5) for _ in range(8))
    pool = TrainingPool(new, old, 0.25)
    steps = list(pool.epoch(4, random.Random(1)))
    drawn = [item for step in steps for batch in step for item in batch]

    assert len(steps) == pool.steps(4) == 5
    assert len(drawn) == len(set(map(id, drawn))) == 20 + pool.rehearsed_per_epoch == 25
    assert set(new) <= set(drawn)
    # Every step has a batch of each kind, however different their lengths are.
    assert [[(len(batch), len({item in new for item in batch})) for batch in step] for step in steps] == [
        [(4, 1), (1, 1)]
    ] * 5
    assert TrainingPool(new, old, 9.0).rehearsed_per_epoch == 8
    assert list(TrainingPool(new).epoch(4, random.Random(2))) == [
        [batch] for batch in batches(new, 4, random.Random(2))
    ]
    cut = list(batches(drawn, 4, random.Random(2)))
    assert sorted(map(id, drawn)) == sorted(id(item) for batch in cut for item in batch)
    assert cut == list(batches(drawn, 4, random.Random(2)))
    assert max(len(batch) for batch in cut) == 4


@given(
    new=st.integers(1, 60),
    old=st.integers(0, 60),
    ratio=st.floats(0, 3),
    size=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_an_epoch_contains_every_new_text(new: int, old: int, ratio: float, size: int, seed: int) -> None:
    """An epoch contains every new text once and the requested number of old texts, in the announced number of steps."""
    chance = random.Random(seed)
    fakes = [
        type("T", (), {"encoding": type("E", (), {"ids": range(chance.randrange(9))})(), "old": number >= new})()
        for number in range(new + old)
    ]
    pool = TrainingPool(tuple(fakes[:new]), tuple(fakes[new:]), ratio)
    steps = list(pool.epoch(size, chance))
    drawn = [item for step in steps for batch in step for item in batch]

    assert len(steps) == pool.steps(size)
    assert sum(not item.old for item in drawn) == new
    assert sum(item.old for item in drawn) == pool.rehearsed_per_epoch == min(old, round(ratio * new))
    assert len(set(map(id, drawn))) == len(drawn)

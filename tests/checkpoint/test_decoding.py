"""Decoding and alignment: tags to spans and back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from checkpoint.test_encoding import encoder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from twofold_checkpoint.alignment import UNKNOWN, align
from twofold_checkpoint.decoding import (
    decode_entities,
    decode_labels,
    merge_tokens,
    merge_windows,
    viterbi,
)
from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.examples import Span
from twofold_checkpoint.labels import LabelSet

TYPES = ("city", "date")


def allowed(tags: tuple[int, ...]) -> bool:
    """Return whether a tag sequence follows the BIO rules."""
    return all(tag == 0 or tag % 2 or (index and tags[index - 1] in {tag - 1, tag}) for index, tag in enumerate(tags))


@given(npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(5)), elements=st.floats(-9, 9, width=32)))
def test_viterbi_finds_the_best_allowed_sequence(scores: np.ndarray) -> None:
    """The result is the best of all allowed sequences, by brute force."""

    def total(tags: tuple[int, ...]) -> float:
        return float(sum(scores[index, tag] for index, tag in enumerate(tags)))

    best = max(total(tags) for tags in itertools.product(range(5), repeat=len(scores)) if allowed(tags))
    actual = tuple(viterbi(scores).tolist())

    assert allowed(actual)
    assert total(actual) == pytest.approx(best, abs=1e-4)


def logits_for(encoding: Encoding, spans: list[Span]) -> np.ndarray:
    """Return logits that match the alignment, as those of a trained head would."""
    tags = align(encoding, spans, TYPES).tags
    logits = np.zeros((len(encoding.ids), 1 + 2 * len(TYPES)), np.float32)
    stops = np.append(encoding.word_starts[1:], len(encoding.ids))
    for tag, start, stop in zip(tags, encoding.word_starts, stops, strict=True):
        logits[start, tag] = 9
        logits[start + 1 : stop, tag + 1 if tag % 2 else tag] = 9
    return logits


TEXTS = [
    ("to Łódź tomorrow", [("Łódź", "city"), ("tomorrow", "date")]),
    ("Cafe\u0301 in Zu\u0308rich 😀", [("Zu\u0308rich", "city")]),
    ("new york new york", [("new york", "city")]),
    ("nothing here", []),
]


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
@pytest.mark.parametrize(("text", "marked"), TEXTS)
def test_spans_survive_alignment_and_decoding(kind: str, text: str, marked: list[tuple[str, str]]) -> None:
    """A span that is aligned and decoded keeps its characters, in any script."""
    spans = [Span(start=text.index(part), end=text.index(part) + len(part), type=name) for part, name in marked]
    [encoding] = encoder(kind).encode([text])

    [actual] = decode_entities([encoding], [logits_for(encoding, spans)], TYPES)

    assert [(result.start, result.end, result.type) for result in actual] == [(s.start, s.end, s.type) for s in spans]
    assert all(result.score > 0.9 for result in actual)


@given(
    st.lists(st.sampled_from(["", "to berlin now", "rome", "a b c d e", "Łódź tomorrow"]), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_decoding_does_not_depend_on_the_batch(texts: list[str], seed: int) -> None:
    """A text has the same spans and scores alone and among others, for any logits."""
    encodings = encoder("wordpiece").encode(texts)
    random = np.random.default_rng(seed)
    logits = [random.normal(0, 3, (len(encoding.ids), 5)).astype(np.float32) for encoding in encodings]

    together = decode_entities(encodings, logits, TYPES)

    alone = [decode_entities([encoding], [own], TYPES)[0] for encoding, own in zip(encodings, logits, strict=True)]
    assert [[(e.start, e.end, e.type) for e in actual] for actual in together] == [
        [(e.start, e.end, e.type) for e in actual] for actual in alone
    ]
    assert [e.score for actual in together for e in actual] == pytest.approx(
        [e.score for f in alone for e in f], abs=1e-6
    )


def test_spans_never_end_inside_a_word() -> None:
    """The sub-words of a word vote together, so a span never ends inside a word."""
    [encoding] = encoder("wordpiece").encode(["berlin"])
    logits = np.zeros((6, 5), np.float32)
    logits[0, 1] = 3  # The first sub-word says that a city begins,
    logits[1:, 0] = 1  # the others mildly say that there is none.
    logits[1:, 2] = 0.9

    [[entity]] = decode_entities([encoding], [logits], TYPES)

    assert (entity.start, entity.end) == (0, 6)


def test_adjacent_spans_of_one_type_stay_separate() -> None:
    """A span that begins right after another one of its type is a separate span."""
    text = "rome paris"
    spans = [Span(start=0, end=4, type="city"), Span(start=5, end=10, type="city")]
    [encoding] = encoder("wordpiece").encode([text])

    [actual] = decode_entities([encoding], [logits_for(encoding, spans)], TYPES)

    assert [(result.start, result.end) for result in actual] == [(0, 4), (5, 10)]


@pytest.mark.parametrize(("start", "end"), [(1, 6), (0, 5), (0, 3)])
def test_a_span_that_cuts_a_word_is_reported_and_left_out_of_the_loss(start: int, end: int) -> None:
    """A span that ends inside a word is reported, and the words that it touches are marked unknown."""
    span = Span(start=start, end=end, type="city")
    [encoding] = encoder("wordpiece").encode(["berlin now"])

    alignment = align(encoding, [span], TYPES)

    assert alignment.unaligned == (span,)
    assert alignment.tags.tolist() == [UNKNOWN, 0]


def test_white_space_at_the_ends_of_a_span_does_not_matter() -> None:
    """White space at the ends of a span does not affect its alignment."""
    [encoding] = encoder("wordpiece").encode(["to berlin now"])

    alignment = align(encoding, [Span(start=2, end=10, type="city")], TYPES)

    assert alignment.tags.tolist() == [0, 1, 0]


def test_labels_come_best_first_and_sum_to_one() -> None:
    """The top labels are sorted by probability, which is a softmax."""
    [actual] = decode_labels(np.asarray([[0.0, 2.0, 1.0]], np.float32), ["a", "b", "c"], top=3)

    assert [result.label for result in actual] == ["b", "c", "a"]
    assert sum(result.score for result in actual) == pytest.approx(1, abs=1e-6)


def test_windows_are_merged_by_their_kept_tokens() -> None:
    """The rows of several windows become one row for each token of the text."""
    [encoding] = encoder("wordpiece", 8, 2).encode(["abcdefghijklmno"])
    rows = [np.zeros((8, 1), np.float32) for _ in encoding.windows]
    for window, row in zip(encoding.windows, rows, strict=True):
        row[window.prefix : window.prefix + window.stop - window.start, 0] = np.arange(window.start, window.stop)

    merged = merge_tokens(encoding, rows)

    assert merged[:, 0].tolist() == list(range(15))


def test_window_logits_are_weighted_by_their_tokens() -> None:
    """A window with more tokens has more weight in a text's label."""
    [encoding] = encoder("wordpiece", 10, 0).encode(["abcdefghij"])

    merged = merge_windows(encoding, [np.asarray([1.0], np.float32), np.asarray([0.0], np.float32)])

    assert merged.tolist() == [pytest.approx(0.8)]


def test_appending_never_moves_a_row() -> None:
    """New labels and types follow the old ones, sorted; existing names change nothing."""
    old = LabelSet(labels=("b", "a"), entity_types=("y",))

    new = old.append(labels={"d", "c", "a"}, entity_types={"x", "y"})

    assert new.labels == ("b", "a", "c", "d")
    assert new.tags == ("O", "B-y", "I-y", "B-x", "I-x")
    assert old.append() == old


@pytest.mark.parametrize("labels", [("a", "a"), ("",), (" a",)])
def test_a_label_set_names_each_row_once(labels: tuple[str, ...]) -> None:
    """Duplicate labels, empty labels and labels with surrounding white space are rejected."""
    with pytest.raises(ValueError, match="label"):
        LabelSet(labels=labels, entity_types=())

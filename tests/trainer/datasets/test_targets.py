"""Training targets match the decoder."""

from __future__ import annotations

import numpy as np
import pytest
from support import tiny_models
from tokenizers import Tokenizer
from twofold_checkpoint.decoding import decode_entities
from twofold_checkpoint.encoding import Encoder, EncoderSettings
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.labels import LabelSet
from twofold_trainer.datasets.targets import describe_unaligned, make_targets

LABELS = LabelSet(labels=("flight", "music"), entity_types=("city", "date", "artist"))


@pytest.fixture(scope="module", params=["word pieces", "byte pairs"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """An encoder of each kind of tokenizer."""
    text = tiny_models.word_piece() if request.param == "word pieces" else tiny_models.byte_pairs(causal=False)
    return Encoder(Tokenizer.from_str(text), EncoderSettings(max_tokens=40, overlap=4, pad_id=0))


def test_allowed_tags_decode_to_the_annotation(encoder: Encoder) -> None:
    """Logits that are high for allowed tags decode to the annotated spans, including sub-words."""
    given = [Example(text="from zanzibar to Łódźville tomorrow", entities=tuple(SPANS)), *tiny_models.examples(40)]
    texts_with_sub_words = 0
    for target in make_targets(given, encoder, LABELS, heads=("ner",)):
        texts_with_sub_words += len(target.encoding.ids) > len(target.encoding.word_starts)
        logits = np.where(target.allowed, 9.0, 0.0).astype(np.float32)
        [actual] = decode_entities([target.encoding], [logits], LABELS.entity_types)

        assert [(result.start, result.end, result.type) for result in actual] == [
            (span.start, span.end, span.type) for span in target.example.entities or ()
        ]
    assert texts_with_sub_words


SPANS = (Span(start=5, end=13, type="city"), Span(start=17, end=26, type="city"), Span(start=27, end=35, type="date"))


def test_tokens_outside_spans_may_have_unannotated_types(encoder: Encoder) -> None:
    """Outside all spans, a word may be O or of an unannotated type; its later sub-words cannot begin a span."""
    example = Example(text="qqq paris", entities=(Span(start=4, end=9, type="city"),), annotated_types=("city",))
    (target,) = make_targets([example], encoder, LABELS)
    tags = LABELS.tags
    first, second = target.encoding.word_starts
    names = [{tags[index] for index in np.flatnonzero(row)} for row in target.allowed]

    assert names[first] == {"O", "B-date", "I-date", "B-artist", "I-artist"}
    assert all(rest == {"O", "I-date", "I-artist"} for rest in names[first + 1 : second])
    assert names[second] == {"B-city"}
    assert all(rest == {"I-city"} for rest in names[second + 1 :])


def test_unaligned_annotations_are_excluded_and_reported(encoder: Encoder) -> None:
    """A span that ends inside a word leaves the word open, is counted, and is quoted in its context."""
    example = Example(text="fly to paris tomorrow", entities=(Span(start=7, end=10, type="city"),))
    (target,) = make_targets([example], encoder, LABELS)
    count, quotes = describe_unaligned([target])

    offsets = target.encoding.offsets
    touched = (offsets[:, 0] >= 7) & (offsets[:, 1] <= 12)
    assert target.allowed[touched].all()
    assert not target.allowed[~touched].all(axis=1).any()
    assert count == 1
    assert "city 'par' in 'fly to paris tomorrow'" in quotes


@pytest.mark.parametrize(
    ("heads", "label", "open_tokens"),
    [(("ner",), -1, False), (("classifier",), 1, True), (("classifier", "ner"), 1, False)],
)
def test_annotations_for_other_heads_are_ignored(
    encoder: Encoder, heads: tuple[str, ...], label: int, open_tokens: bool
) -> None:
    """Annotations for other heads than the requested ones are ignored."""
    example = Example(text="play it", label="music", entities=())
    (target,) = make_targets([example], encoder, LABELS, heads=heads)

    assert target.label == label
    assert bool(target.allowed.all()) == open_tokens


def test_unannotated_differs_from_annotated_without_entities(encoder: Encoder) -> None:
    """Without entities every token is open; with an empty list every token is O."""
    unknown, empty = make_targets([Example(text="play it"), Example(text="play it", entities=())], encoder, LABELS)

    assert unknown.label == -1
    assert unknown.allowed.all()
    assert (empty.allowed.sum(axis=1) == 1).all()

"""The encoder: exact offsets, words and windows."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from twofold_checkpoint.encoding import Encoder, EncoderSettings, pad

LETTERS = "abcdefghijklmnopqrstuvwxyzàéîöü"


def wordpiece() -> Tokenizer:
    """Return a BERT-like tokenizer: lower case, accents stripped, single letters as sub-words."""
    plain = sorted({unicodedata.normalize("NFD", letter)[0] for letter in LETTERS})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *plain, *(f"##{letter}" for letter in plain), *".,!?'-😀👍0123456789"]
    pieces += [f"##{digit}" for digit in "0123456789"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """Return a GPT-2-like tokenizer: bytes, no special tokens, words with their leading space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece, "byte_level": byte_level}


def encoder(kind: str, max_tokens: int = 64, overlap: int = 8) -> Encoder:
    """Build an encoder of a kind."""
    return Encoder(TOKENIZERS[kind](), EncoderSettings(max_tokens=max_tokens, overlap=overlap, pad_id=0))


WORDS = [
    ("Play Café del Mar", ["Play", "Café", "del", "Mar"]),
    ("Play Cafe\u0301 now", ["Play", "Cafe\u0301", "now"]),
    ("hi 😀 you", ["hi", "😀", "you"]),
    ("thumbs 👍🏽 up", ["thumbs", "👍🏽", "up"]),
    ("  wide   space  ", ["wide", "space"]),
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("text", "words"), WORDS)
def test_words_are_the_texts_own_characters(kind: str, text: str, words: list[str]) -> None:
    """The character ranges of words give back the words, with combining marks and without white space."""
    [encoding] = encoder(kind).encode([text])

    actual = [text[start:end] for start, end in encoding.word_spans()]

    if kind == "byte_level":  # It takes a combining mark for a word of its own.
        words = [part for word in words for part in re.split("(\u0301)", word) if part]
    assert [word for word in actual if word] == words


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(max_size=80))
def test_offsets_lie_in_the_text_in_order(kind: str, text: str) -> None:
    """Offsets of any text are half-open ranges inside it, and words never run backwards."""
    [encoding] = encoder(kind).encode([text])

    assert len(encoding.ids) == len(encoding.offsets)
    assert ((encoding.offsets >= 0) & (encoding.offsets <= len(text))).all()
    assert (encoding.offsets[:, 0] <= encoding.offsets[:, 1]).all()
    assert (np.diff(encoding.word_spans()[:, 0]) >= 0).all()


@given(
    text=st.text(alphabet=LETTERS + " ", max_size=300),
    max_tokens=st.integers(8, 40),
    overlap=st.integers(0, 2),
)
def test_windows_keep_every_token_once(text: str, max_tokens: int, overlap: int) -> None:
    """The kept parts of the windows are the text's tokens, each exactly once and in order."""
    [encoding] = encoder("wordpiece", max_tokens, overlap).encode([text])

    kept = [
        window.ids[window.prefix - window.start + window.keep_start : window.prefix - window.start + window.keep_stop]
        for window in encoding.windows
    ]

    np.testing.assert_array_equal(np.concatenate(kept), encoding.ids)
    assert all(len(window.ids) <= max_tokens for window in encoding.windows)
    assert all(window.ids[0] == 2 and window.ids[-1] == 3 for window in encoding.windows)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_empty_text_has_one_window_with_a_token(kind: str) -> None:
    """An empty text still gives the backbone something to read, and has no words."""
    [encoding] = encoder(kind).encode([""])

    assert len(encoding.windows) == 1
    assert len(encoding.windows[0].ids) >= 1
    assert not len(encoding.word_spans())


def test_truncation_and_padding_are_switched_off() -> None:
    """A tokenizer that was packaged with truncation and padding loses and invents no token."""
    tokenizer = wordpiece()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)

    [encoding] = Encoder(tokenizer, EncoderSettings(max_tokens=64, overlap=8, pad_id=0)).encode(["abcdefgh"])

    assert len(encoding.ids) == 8


def test_padding_stands_on_the_right_and_is_masked() -> None:
    """Shorter windows are filled on the right with the pad id, under a mask of zeros."""
    first, two = encoder("wordpiece").encode(["ab", "abcd"])

    ids, mask = pad([first.windows[0], two.windows[0]], pad_id=0)

    assert ids.shape == mask.shape == (2, 6)
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert ids[0, 4:].tolist() == [0, 0]


@pytest.mark.parametrize(("max_tokens", "overlap"), [(8, 4), (8, -1), (3, 1)])
def test_impossible_settings_are_refused(max_tokens: int, overlap: int) -> None:
    """Settings that leave no room for a window are refused when they are made."""
    with pytest.raises(ValueError, match="overlap"):
        encoder("wordpiece", max_tokens, overlap)

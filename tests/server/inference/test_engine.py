"""The engine: the graph's answers in any batch, and checkpoints that must not be loaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_checkpoints
from twofold_checkpoint.encoding import pad
from twofold_checkpoint.errors import CheckpointError
from twofold_server.config.settings import EngineSettings
from twofold_server.errors import SwapError
from twofold_server.inference.engine import FEATURE_OUTPUTS, HEAD_OUTPUTS, Engine, EngineState, decode_rows
from twofold_server.inference.session import open_session
from twofold_server.versions.loader import load_engine

SETTINGS = EngineSettings(threads=1)
WORDS = st.sampled_from(
    [*tiny_checkpoints.vocabulary(tiny_checkpoints.Recipe())[4:40], "oslo", "new york", "😀", "unheard-of"]
)
TEXTS = st.lists(WORDS, max_size=120).map(" ".join)


@cache
def engine() -> Engine:
    """An engine for all tests that only run it."""
    store = tiny_checkpoints.make_store(Path(mkdtemp()), "a")
    return load_engine(store.get("a"), SETTINGS)


def ask(texts, budget=256):
    """Return the answers to texts in one batch."""
    encodings = engine().encoder.encode(texts)
    windows = [window for encoding in encodings for window in encoding.windows]
    rows = iter(engine().run_windows(windows, HEAD_OUTPUTS, budget))
    return decode_rows(
        encodings, [[next(rows) for _ in engine_.windows] for engine_ in encodings], engine().labels, top=3
    )


def same(left, right):
    """Return whether two predictions are equal, scores up to rounding."""
    assert [label.label for label in left.labels] == [label.label for label in right.labels]
    assert [(e.start, e.end, e.type) for e in left.entities] == [(e.start, e.end, e.type) for e in right.entities]
    for mine, label in zip((*left.labels, *left.entities), (*right.labels, *right.entities), strict=True):
        assert mine.score == pytest.approx(label.score, abs=1e-5)


@given(TEXTS)
def test_the_graph_matches_numpy(text):
    """A text's answer equals the one computed in NumPy, with one or more windows."""
    [answer] = ask([text])

    same(answer, tiny_checkpoints.answer(text, top=3))


@given(st.lists(TEXTS, min_size=1, max_size=8), st.integers(8, 512))
def test_neighbours_and_padding_change_nothing(texts, budget):
    """A text has the same answer alone and in any batch of any size."""
    for together, text in zip(ask(texts, budget), texts, strict=True):
        same(together, ask([text])[0])


def test_features_are_those_of_the_graph():
    """Features are returned by name, one row per window."""
    [encoding] = engine().encoder.encode(["rain in oslo"])
    [(pooled, tokens)] = engine().run_windows(encoding.windows, FEATURE_OUTPUTS, 256)
    expected = tiny_checkpoints.make_weights(tiny_checkpoints.Recipe()).forward(*pad(encoding.windows, 0))

    np.testing.assert_allclose(pooled, expected["pooled"][0], atol=1e-5)
    np.testing.assert_allclose(tokens, expected["token_features"][0], atol=1e-5)


@pytest.mark.parametrize("kind", tiny_checkpoints.BROKEN)
def test_a_broken_checkpoint_is_not_loaded(kind, tmp_path):
    """Loading a broken checkpoint fails with an error that names the fault and no path of this machine."""
    store = tiny_checkpoints.make_store(tmp_path)
    message = tiny_checkpoints.BROKEN[kind][2]
    tiny_checkpoints.publish_broken(store, kind)

    with pytest.raises((CheckpointError, SwapError)) as caught:
        load_engine(store.get("x"), SETTINGS)

    assert message in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_dynamic_widths_are_checked_at_warm_up(tmp_path):
    """A graph with dynamic widths is loaded if its outputs are as wide as the manifest says."""
    store = tiny_checkpoints.make_store(tmp_path)

    assert load_engine(tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(open_widths=True)), SETTINGS).id == "a"


def test_the_warm_up_checks_output_widths():
    """Outputs that are not as wide as the manifest says fail the warm-up, whatever the graph declares."""

    def narrow(ids, mask, outputs):
        return [np.zeros((len(ids), 2), np.float32) for _ in outputs]

    with mock.patch.object(engine(), "run", narrow), pytest.raises(SwapError, match="classifier_logits has width 2"):
        engine().warm_up()


def test_on_a_gpu_the_longest_and_the_usual_shapes_are_run_first():
    """Before an engine answers on a GPU, the warm-up runs the longest window first, then the usual shapes."""
    engine_, shapes, run = engine(), [], Engine.run

    def note(ids, mask, outputs):
        shapes.append(ids.shape)
        with mock.patch.object(engine_, "_device", "cpu"):
            return run(engine_, ids, mask, outputs)

    with mock.patch.object(engine_, "_device", "cuda"), mock.patch.object(engine_, "run", note):
        engine_.warm_up()

    longest = engine_.encoder.settings.max_tokens
    assert shapes == [(1, longest), *((rows, min(16, longest)) for rows in (1, 8, 32))]


@pytest.mark.parametrize(("requested", "threads"), [({}, 2), ({"passes": 1}, 3), ({"threads": 2}, 2)])
def test_an_engine_has_the_threads_that_are_allowed(requested, threads, monkeypatch):
    """By default the number of threads is that of the CPUs of affinity and cgroup, minus one for the other pass."""
    monkeypatch.setattr("twofold_server.versions.loader.count_cpus", lambda: 3)
    with mock.patch("twofold_server.inference.engine.open_session", wraps=open_session) as opened:
        load_engine(engine().checkpoint, EngineSettings(**requested)).close()

    assert opened.call_args.kwargs["threads"] == threads


def test_a_device_that_is_not_there_is_named():
    """If the installed onnxruntime lacks CUDA, the error names the extra to install."""
    checkpoint = engine().checkpoint

    with pytest.raises(SwapError, match="install the gpu extra"):
        Engine(checkpoint, device="cuda")


def test_a_closed_engine_keeps_its_labels(tmp_path):
    """After close() the session is gone, but labels and encoder stay for answers that are being decoded."""
    engine_ = load_engine(tiny_checkpoints.make_store(tmp_path, "a").get("a"), SETTINGS)
    engine_.close()

    assert engine_.state is EngineState.CLOSED
    assert engine_.labels.labels[0] == "a_weather"
    assert "closed" in repr(engine_)
    with pytest.raises(RuntimeError, match="This is a bug"):
        engine_.run(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64), HEAD_OUTPUTS)

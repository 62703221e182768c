"""The int8 graph: its results, the independence of its rows, and its gate."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import QuantType, quantize_dynamic
from support import tiny_models
from twofold_checkpoint.checkpoint import GRAPH, INT8_FILES, INT8_GOLDEN, INT8_GRAPH, Checkpoint
from twofold_checkpoint.golden import read_golden
from twofold_checkpoint.manifest import ReducedGraph
from twofold_checkpoint.store import Store
from twofold_server.config.settings import EngineSettings
from twofold_server.inference.engine import HEAD_OUTPUTS, Engine, decode_rows
from twofold_server.versions.loader import load_engine
from twofold_trainer.export.onnx_export import Graph
from twofold_trainer.export.quantization import LEVELS, quantise_graph, quantise_weights
from twofold_trainer.export.quantization_gate import (
    QuantizationInputs,
    answer,
    evaluate_quantized,
    measure_isolation,
    reduce_precision,
)
from twofold_trainer.stop import StopSignal

pytestmark = pytest.mark.slow

HELD_OUT = tiny_models.examples(700, seed=33)


def reduction(checkpoint: Checkpoint, examples=HELD_OUT) -> QuantizationInputs:
    """Return the inputs for evaluating by examples."""
    return QuantizationInputs(checkpoint.manifest.labels, checkpoint.encoder(), examples, 0, 1)


def reduce(checkpoint: Checkpoint, examples=HELD_OUT) -> tuple[ReducedGraph, ...]:
    """Run reduce_precision() to its end."""
    running = reduce_precision(reduction(checkpoint, examples), checkpoint.path, StopSignal())
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint with an int8 graph that was evaluated on many examples.

    It is trained on twice the usual number of examples: its margins are then so wide that int8 changes no answer on any CPU.
    """
    base_store = tiny_models.make_base_store(tmp_path_factory.mktemp("base"), train_examples=480)
    base = Store(base_store).get("current")
    store = Store(tmp_path_factory.mktemp("reduced")).create()
    with store.staging() as staged:
        for file in base.manifest.files:
            shutil.copyfile(base.path / file.name, staged / file.name)
        actual = reduce(Checkpoint(staged, base.manifest))
        return store.publish(staged, type(base.manifest)(**{**_fields(base), "reduced": actual}))


def _fields(checkpoint: Checkpoint) -> dict:
    return {name: getattr(checkpoint.manifest, name) for name in checkpoint.manifest.__struct_fields__}


@pytest.fixture(scope="module")
def engines(reduced: Checkpoint) -> dict[str, Engine]:
    """The checkpoint in both precisions, as the server loads it."""
    return {item: load_engine(reduced, EngineSettings(threads=1, precision=item)) for item in ("fp32", "int8")}


def test_enough_examples_let_it_serve(reduced: Checkpoint) -> None:
    """A graph that loses nothing on enough examples passes, with figures, golden answers and digests of its files."""
    [judged] = reduced.manifest.reduced

    assert judged.passed, judged.reason
    assert judged.isolation_error <= 1e-5
    assert "on 700 examples: a drop of" in judged.reason
    assert {score.head for score in judged.scores} == {"classifier", "ner"}
    assert {file.name for file in reduced.manifest.files} >= set(INT8_FILES)
    assert [example.text for example in read_golden(reduced.path / INT8_GOLDEN)]
    assert reduced.manifest.precisions == ("fp32", "int8")
    reduced.verify()


def test_too_few_examples_prove_nothing(base_store: Path) -> None:
    """With few held-out examples, a first checkpoint records that they prove nothing, and stores no int8 graph."""
    checkpoint = Store(base_store).get("current")
    [judged] = checkpoint.manifest.reduced

    assert not judged.passed
    assert "may not serve: classifier" in judged.reason
    assert "examples would decide" in judged.reason
    assert not {file.name for file in checkpoint.manifest.files} & set(INT8_FILES)
    assert checkpoint.manifest.precisions == ("fp32",)


def test_a_head_without_examples_proves_nothing(reduced: Checkpoint) -> None:
    """If a head has no held-out example, the graph may not serve."""
    only = [type(example)(text=example.text, label=example.label) for example in HELD_OUT]
    graphs = (Graph(reduced.path, threads=1), Graph(reduced.path, threads=1, name=INT8_GRAPH))
    judged = evaluate_quantized(reduction(reduced, only), *graphs, StopSignal())

    assert not judged.passed
    assert "no held-out example is annotated for the ner head" in judged.reason


def test_a_worse_graph_fails(reduced: Checkpoint, tmp_path: Path) -> None:
    """A worse graph fails with figures, and its files are removed."""
    shutil.copytree(reduced.path, tmp_path / "copy")
    copy = Checkpoint(tmp_path / "copy", reduced.manifest)
    wrong = [
        type(example)(text=example.text, label=HELD_OUT[index - 1].label, entities=example.entities)
        for index, example in enumerate(HELD_OUT)
    ]
    graphs = (Graph(copy.path, threads=1, name=INT8_GRAPH), _Shuffled(copy.path, threads=1))
    judged = evaluate_quantized(reduction(copy), *graphs, StopSignal())
    assert not judged.passed
    assert "is not excluded" in judged.reason

    [few] = reduce(copy, wrong[:20])
    assert not few.passed
    assert not list(copy.path.glob("*int8*"))


class _Shuffled(Graph):
    """A graph that answers the next label instead of each label."""

    def predict(self, encodings, labels, pad_id):
        turned = type(labels)(labels=(*labels.labels[1:], labels.labels[0]), entity_types=labels.entity_types)
        return super().predict(encodings, turned, pad_id)


def test_one_scale_for_a_batch_is_no_isolation(reduced: Checkpoint, tmp_path: Path) -> None:
    """The isolation check detects dynamic quantisation per tensor, with one scale per batch."""
    shutil.copytree(reduced.path, tmp_path / "copy")
    quantize_dynamic(tmp_path / "copy" / GRAPH, tmp_path / "copy" / "per_tensor.onnx", weight_type=QuantType.QInt8)
    graph = Graph(tmp_path / "copy", threads=1, name="per_tensor.onnx")

    assert measure_isolation(graph, [example.text for example in HELD_OUT[:64]], reduced.encoder()) > 1e-4


def answers(engine: Engine, texts: list[str], budget: int):
    """Return the answers to texts in one batch."""
    encodings = engine.encoder.encode(texts)
    windows = [window for encoding in encodings for window in encoding.windows]
    rows = iter(engine.run_windows(windows, HEAD_OUTPUTS, budget))
    return decode_rows(encodings, [[next(rows) for _ in item.windows] for item in encodings], engine.labels, top=3)


WORDS = st.sampled_from([*(word for example in HELD_OUT[:40] for word in example.text.split()), "zebra", "x", "😀"])
TEXTS = st.lists(WORDS, max_size=60).map(" ".join)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_neighbours_and_padding_change_nothing(engines: dict[str, Engine], precision: str, data: st.DataObject) -> None:
    """A text has the same labels, spans and scores (to 1e-5) alone and in any batch, with any padding."""
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=10))
    budget = data.draw(st.integers(8, 1024))
    engine = engines[precision]
    for together, text in zip(answers(engine, texts, budget), texts, strict=True):
        [alone] = answers(engine, [text], 1024)
        assert [label.label for label in together.labels] == [label.label for label in alone.labels]
        spans = [
            [(entity.start, entity.end, entity.type) for entity in answer.entities] for answer in (together, alone)
        ]
        assert spans[0] == spans[1]
        for own, label in zip((*alone.labels, *alone.entities), (*together.labels, *together.entities), strict=True):
            assert own.score == pytest.approx(label.score, abs=1e-5)


def test_weights_keep_their_channels() -> None:
    """Each output channel has its own scale: large values do not affect small ones, and zeros stay zeros."""
    weights = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * np.asarray(
        [1, 1e-3, 100, 0], np.float32
    )
    quantised, scales = quantise_weights(weights)

    assert quantised.dtype == np.int8
    assert (np.abs(quantised).max(axis=0)[:3] == LEVELS).all()
    assert (np.abs(quantised * scales - weights) <= scales / 2 * 1.001).all()


def test_a_graph_without_products_is_not_quantised(tmp_path: Path) -> None:
    """If only the heads have matrix products, nothing is quantised or written."""
    from support import tiny_checkpoints

    checkpoint = tiny_checkpoints.publish(Store(tmp_path))

    assert quantise_graph(checkpoint.path) == 0
    assert reduce(checkpoint) == ()
    assert not list(checkpoint.path.glob("*int8*"))


def test_known_fp32_answers_are_reused(reduced: Checkpoint) -> None:
    """Known fp32 answers are used instead of new ones, even if they are wrong."""
    fp32, int8 = (Graph(reduced.path, threads=1, name=name) for name in (GRAPH, INT8_GRAPH))
    requested = reduction(reduced, HELD_OUT[:60])
    known = dict(
        zip((example.text for example in HELD_OUT), answer(fp32, HELD_OUT[:40], requested, StopSignal()), strict=False)
    )
    wrong = {text: msgspec.structs.replace(item, entities=()) for text, item in known.items()}
    alone, helped, misled = (
        evaluate_quantized(dataclasses.replace(requested, answered=item), fp32, int8, StopSignal())
        for item in ({}, known, wrong)
    )

    assert helped == alone
    assert misled.reason != alone.reason
    assert misled.scores == alone.scores

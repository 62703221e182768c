"""Training of a first checkpoint."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from twofold_checkpoint.checkpoint import GOLDEN, MEMORY
from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example, Span, write_examples
from twofold_checkpoint.golden import compare_golden, read_golden
from twofold_checkpoint.memory import normalize_text, read_memory
from twofold_checkpoint.store import Store
from twofold_trainer.errors import RefusedError
from twofold_trainer.export.onnx_export import Graph
from twofold_trainer.initial_training import train_initial_checkpoint
from twofold_trainer.modeling.model import load_model
from twofold_trainer.scoring.scorer import predict

pytestmark = pytest.mark.slow


def test_the_first_checkpoint_is_whole(base_store: Path) -> None:
    """The current checkpoint verifies, has learned both tasks, and contains its labels, scores and provenance."""
    store = Store(base_store)
    checkpoint = store.get("current")
    checkpoint.verify()
    manifest = checkpoint.manifest

    assert manifest.labels.labels == ("alarm", "flight", "music", "weather")
    assert manifest.labels.entity_types == ("artist", "city", "date")
    assert (manifest.architecture, manifest.pooling, manifest.backbone) == ("bert", "mean", "backbone")
    assert manifest.parent is None
    scores = {score.head: score.value for score in manifest.scores}
    assert scores["classifier"] > 0.9
    assert scores["ner"] > 0.8
    assert manifest.provenance.settings["stages"]
    assert set(manifest.provenance.versions) >= {"torch", "onnx", "transformers"}
    assert not list((base_store / "staging").iterdir())


def test_the_memory_holds_disjoint_parts(base_store: Path) -> None:
    """The memory has examples for rehearsal, early stopping and the gate, with annotated types, and no text is in two parts."""
    memory = read_memory(Store(base_store).get("current").path / MEMORY)
    texts = [{normalize_text(example.text) for example in part} for part in (memory.rehearsal, memory.dev, memory.gate)]

    assert all(texts)
    assert sum(len(part) for part in texts) == len(set.union(*texts))
    assert {item.annotated_types for item in memory.gate} == {("artist", "city", "date")}


def test_golden_answers_and_reloaded_weights_agree(base_store: Path) -> None:
    """The graph and the model reloaded from the training weights both reproduce the golden answers, without network access."""
    checkpoint = Store(base_store).get("current")
    encoder, labels = checkpoint.encoder(), checkpoint.manifest.labels
    golden = read_golden(checkpoint.path / GOLDEN)
    graph, model = Graph(checkpoint.path, threads=1), load_model(checkpoint)

    assert len(golden) == 8
    for answer in golden:
        encodings = encoder.encode([answer.text])
        assert compare_golden(answer.prediction, graph.predict(encodings, labels, 0)[0]) is None
        assert compare_golden(answer.prediction, predict(model, encodings, labels, 0)[0]) is None


@pytest.mark.parametrize(
    ("examples", "error", "reason"),
    [
        ([Example(text="hi", label="x")] * 4, RefusedError, "no example has an entity"),
        ([Example(text="hi", entities=())] * 4, RefusedError, "no example has a label"),
        ([Example(text=" ")], ExampleError, "train.jsonl:1: text: is empty"),
    ],
)
def test_init_rejects_examples_for_one_head(
    examples: list[Example], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    """Examples that cannot teach both heads are rejected before a backbone is loaded."""
    write_examples(tmp_path / "train.jsonl", examples)

    with pytest.raises(error, match=reason):
        list(
            train_initial_checkpoint(
                train=str(tmp_path / "train.jsonl"), out=str(tmp_path / "s"), backbone="nowhere/at-all"
            )
        )

    assert not (tmp_path / "s").exists()


def test_init_refuses_labels_that_only_dev_has(tmp_path: Path) -> None:
    """Labels only in --dev are not enough: a head learns from --train."""
    both = Example(text="in Oslo", label="where", entities=(Span(start=3, end=7, type="city"),))
    write_examples(tmp_path / "dev.jsonl", [both] * 4)
    (tmp_path / "train.jsonl").write_text('{"text": "in Oslo", "intent": "where"}\n')

    with pytest.raises(RefusedError, match=r'train.jsonl: no example has a label.* add "label"'):
        list(
            train_initial_checkpoint(
                train=str(tmp_path / "train.jsonl"), dev=str(tmp_path / "dev.jsonl"), out=str(tmp_path / "s")
            )
        )


def test_manifest_survives_json(base_store: Path) -> None:
    """The manifest that is read equals the one that was written."""
    manifest = Store(base_store).get("current").manifest

    assert msgspec.json.decode(msgspec.json.encode(manifest), type=type(manifest)) == manifest
    assert torch.get_num_threads() == 1

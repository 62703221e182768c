"""The exported graph agrees with the model, for every architecture and shape."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from support import tiny_models
from support.exported_models import LABELS, Exported
from twofold_checkpoint.checkpoint import GRAPH, GRAPH_WEIGHTS, INT8_GRAPH
from twofold_trainer.errors import ParityError
from twofold_trainer.export.onnx_export import Graph, measure_parity, parity_batches
from twofold_trainer.export.quantization import quantise_graph
from twofold_trainer.export.quantization_gate import measure_isolation

pytestmark = pytest.mark.slow


def test_graph_and_model_agree(exported: Exported) -> None:
    """At every shape the graph gives the model's logits, rows do not affect each other, and both axes are dynamic."""
    model, encoder, settings, directory = exported.model, exported.encoder, exported.backbone.settings, exported.base
    texts = [example.text for example in tiny_models.examples(12)]

    graph = Graph(directory, threads=1)
    batches = parity_batches(texts, encoder)
    measured = measure_parity(model, graph, batches, LABELS, settings.pad_id)

    assert measured.max_error <= 1e-4
    assert {len(batch) for batch in batches} >= {1, 2}
    longest = max(len(window.ids) for batch in batches for encoding in batch for window in encoding.windows)
    assert longest == settings.max_tokens

    assert sorted(path.name for path in directory.glob("model*")) == sorted([GRAPH, GRAPH_WEIGHTS])
    inputs = onnx.load(directory / GRAPH, load_external_data=False).graph.input
    axes = [[axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in inputs]
    assert axes == [["batch", "length"]] * 2

    mixed = batches[2]
    (classifier, ner, pooled, features), mask = graph.run(mixed, settings.pad_id)
    for row, encoding in enumerate(mixed):
        alone, _ = graph.run([encoding], settings.pad_id)
        size = int(mask[row].sum())
        for together, single in zip((classifier[row], pooled[row]), (alone[0][0], alone[2][0]), strict=True):
            np.testing.assert_allclose(together, single, atol=1e-5)
        np.testing.assert_allclose(ner[row, :size], alone[1][0], atol=1e-5)
        np.testing.assert_allclose(features[row, :size], alone[3][0], atol=1e-5)

    blocks = len(model.blocks())
    assert quantise_graph(directory) >= 4 * blocks
    int8 = Graph(directory, threads=1, name=INT8_GRAPH)
    assert measure_isolation(int8, texts, encoder) <= 1e-5
    reduced, _ = int8.run(mixed, settings.pad_id)
    assert 0 < np.abs(reduced[3] - features)[mask.astype(bool)].max() < 0.2 * np.abs(features).max()

    with torch.no_grad():
        model.ner.bias[1] += 1e-3
    with pytest.raises(ParityError, match="differs from the trained model by 1"):
        measure_parity(model, graph, batches, LABELS, settings.pad_id)

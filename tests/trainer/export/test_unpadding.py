"""An exported graph multiplies no padding, for every architecture, and gives the same results."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from support.exported_models import Exported
from twofold_checkpoint.checkpoint import GRAPH
from twofold_trainer.export.unpadding import PACKED, remove_padding

pytestmark = pytest.mark.slow


def products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the products of tokens and weights."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def test_every_product_of_an_exported_graph_reads_packed_tokens(exported: Exported) -> None:
    """All products of the blocks and of the NER head read packed tokens; the classifier's read one row per text."""
    graph = onnx.load(exported.base / GRAPH, load_external_data=False).graph
    actual = products(graph)

    assert len(actual) >= 4 * len(exported.model.blocks())
    assert [node.name for node in actual if not node.input[0].startswith(PACKED)] in ([], ["node_classifier_logits"])
    assert not graph.value_info


def small() -> onnx.ModelProto:
    """Return a small graph: tokens times weights plus a residual, with norms, then the sum of each row's real tokens."""
    generator = np.random.default_rng(0)
    weights = {
        "table": generator.normal(size=(20, 4)),
        "weights": generator.normal(size=(4, 4)),
        "bias": generator.normal(size=4),
        "scale": np.ones(4),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"], "embed"),
        helper.make_node("MatMul", ["embedded", "weights"], ["product"], "multiply"),
        helper.make_node("Add", ["product", "bias"], ["biased"], "bias"),
        helper.make_node("Add", ["biased", "embedded"], ["sum"], "residual"),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["tokens"], "norm", axis=-1),
        helper.make_node("Cast", ["attention_mask"], ["real"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["column"], "column"),
        helper.make_node("Expand", ["column", "shape"], ["weight"], "expand"),
        helper.make_node("Mul", ["tokens", "weight"], ["masked"], "mask"),
        helper.make_node("ReduceSum", ["masked", "first"], ["pooled"], "pool", keepdims=0),
    ]
    rows_of = [*("batch", "length"), 4]
    ints = {"last": np.array([-1]), "first": np.array([1]), "shape": np.array([1, 1, 4])}
    tensors = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    tensors += [onnx.numpy_helper.from_array(value.astype(np.int64), name) for name, value in ints.items()]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, rows_of),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 4]),
        ],
        tensors,
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT, rows_of)
            for name in ("embedded", "product", "biased", "sum", "weight", "masked")
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a model, and return any of its values."""
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def test_a_packed_graph_computes_the_same_of_real_tokens_and_lets_a_mask_be_a_mask() -> None:
    """Real tokens and row sums are unchanged, and values that depend only on the mask are not packed."""
    plain, packed = small(), small()
    assert (
        remove_padding(packed.graph) == 4
    )  # The product, its bias, the residual and the norm; not the product with the mask.
    ids = np.arange(12).reshape(3, 4)
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    feeds = {"input_ids": ids, "attention_mask": mask}

    (before, sums), (after, packed_sums) = run(plain, feeds), run(packed, feeds)

    np.testing.assert_allclose(after[mask > 0], before[mask > 0], atol=1e-6)
    np.testing.assert_allclose(packed_sums, sums, atol=1e-6)
    for row, size in enumerate(mask.sum(1)):
        np.testing.assert_array_equal(after[row, size:], np.repeat(after[row, size - 1][None], 4 - size, axis=0))


def test_a_graph_of_unknown_shapes_is_unchanged() -> None:
    """A graph without known shapes is unchanged."""
    model = small()
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    before = [node.SerializeToString() for node in model.graph.node]

    assert remove_padding(model.graph) == 0
    assert [node.SerializeToString() for node in model.graph.node] == before
    assert len(model.graph.initializer) == len(small().graph.initializer)


def test_padding_costs_no_product(exported: Exported) -> None:
    """The output of a product has as many rows as there are real tokens, however long the longest text is."""
    model = onnx.load(exported.base / GRAPH)
    watched = [node.output[0] for node in products(model.graph) if node.input[0].startswith(PACKED)]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in watched)
    ids = np.ones((3, 9), np.int64)
    mask = np.zeros_like(ids)
    mask[0], mask[1:, :2] = 1, 1

    actual = run(model, {"input_ids": ids, "attention_mask": mask})[-len(watched) :]

    assert {result.shape[0] for result in actual} == {9 + 2 + 2}

"""Quantise the exported graph to int8: matrix products on eight-bit integers, with a scale per row.

Weights are quantised once, with a scale per output channel; activations at run time, with a scale per row (token). This needs
no calibration texts, and no row affects another: integer sums are exact, and there is no scale per batch, unlike in dynamic
quantisation. See Dettmers et al. 2022, LLM.int8() (arXiv:2208.07339), for this vector-wise quantisation, and ADR 17 for the
alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper
from twofold_checkpoint.checkpoint import GRAPH, INT8_GRAPH, INT8_GRAPH_WEIGHTS

LEVELS = 127
"""Quantisation steps on each side of zero."""
CENTRE = 128
"""Zero point of the unsigned activations: x86 is fast at products of unsigned and signed bytes."""
SMALLEST = 1e-9
"""Smallest scale, for rows and channels of zeros."""

Floats = NDArray[np.float32]


def quantise_graph(directory: Path) -> int:
    """Write model.int8.onnx beside model.onnx, with its weights; returns the number of quantised products.

    The heads stay in fp32: they are small, and no layer after them would average out their error. If there is no product to
    quantise, nothing is written.
    """
    model = onnx.load(directory / GRAPH, load_external_data=False)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    added: dict[str, NDArray[Any]] = {
        "int8.levels": np.asarray(LEVELS, np.float32),
        "int8.one": np.asarray(1, np.float32),
        "int8.centre": np.asarray(CENTRE, np.uint8),
        "int8.smallest": np.asarray(SMALLEST, np.float32),
        "int8.last_axis": np.asarray([-1], np.int64),
    }
    heads = _read_by_outputs(graph)
    nodes: list[Any] = []
    rows: set[str] = set()
    products = 0
    for node in graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None or len(tensor.dims) != 2 or node.output[0] in heads:
            nodes.append(node)
            continue
        source, name = node.input[0], node.output[0]
        if source not in rows:  # Query, key and value read the same rows.
            rows.add(source)
            nodes.extend(_quantise_rows(source))
        quantised, scales = quantise_weights(_read(tensor, directory))
        added[f"{name}.int8"], added[f"{name}.scales"] = quantised, scales / LEVELS
        added[f"{name}.zeros"] = np.zeros(len(scales), np.int8)
        nodes.extend(_multiply(source, name))
        products += 1
    if not products:
        return 0
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    retained = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*retained, *_write(added, directory / INT8_GRAPH_WEIGHTS)])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, directory / INT8_GRAPH)
    return products


def quantise_weights(weights: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return (inputs, outputs) of weights as int8, and the scale of each output channel."""
    scales = np.maximum(np.abs(weights).max(axis=0), SMALLEST) / LEVELS
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def _read_by_outputs(graph: Any) -> set[str]:
    """Return the names of products that are outputs of the graph, directly or after a bias and unpacking."""
    outputs = {value.name for value in graph.output}
    outputs |= {node.input[0] for node in graph.node if node.op_type == "Gather" and node.output[0] in outputs}
    return outputs | {
        name for node in graph.node if node.op_type == "Add" and node.output[0] in outputs for name in node.input
    }


def _quantise_rows(source: str) -> Iterator[Any]:
    """Scale each row of *source* to -127 .. 127 by its largest magnitude, and convert it to unsigned bytes."""
    magnitudes, largest, size = f"{source}.magnitudes", f"{source}.largest", f"{source}.size"
    factor, scaled = f"{source}.factor", f"{source}.scaled"
    yield helper.make_node("Abs", [source], [magnitudes])
    yield helper.make_node("ReduceMax", [magnitudes, "int8.last_axis"], [largest], keepdims=1)
    yield helper.make_node("Max", [largest, "int8.smallest"], [size])
    yield helper.make_node("Div", ["int8.levels", size], [factor])
    yield helper.make_node("Mul", [source, factor], [scaled])
    yield helper.make_node("QuantizeLinear", [scaled, "int8.one", "int8.centre"], [f"{source}.int8"])


def _multiply(source: str, name: str) -> Iterator[Any]:
    """Multiply bytes exactly, and scale the products by output channel and row."""
    inputs = [f"{source}.int8", f"{name}.int8", "int8.one", f"{name}.scales", "int8.centre", f"{name}.zeros"]
    yield helper.make_node("MatMulIntegerToFloat", inputs, [f"{name}.by_row"], domain="com.microsoft")
    yield helper.make_node("Mul", [f"{name}.by_row", f"{source}.size"], [name])


def _read(tensor: Any, directory: Path) -> Floats:
    external = onnx.TensorProto()
    external.CopyFrom(tensor)
    if external_data_helper.uses_external_data(external):
        external_data_helper.load_external_data_for_tensor(external, str(directory))
    array: Floats = numpy_helper.to_array(external)
    return array


def _write(arrays: dict[str, NDArray[Any]], path: Path) -> Iterator[Any]:
    """Write the matrices to a file, and yield all arrays as tensors."""
    with path.open("wb") as file:
        for name, array in arrays.items():
            tensor = numpy_helper.from_array(array, name)
            if array.ndim == 2:
                external_data_helper.set_external_data(tensor, path.name, offset=file.tell(), length=array.nbytes)
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
            yield tensor

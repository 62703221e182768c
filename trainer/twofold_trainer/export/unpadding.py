"""Remove padding from a graph: token-wise operations run on the real tokens only.

Rows of a batch are padded to the longest row, so half of a batch of short texts of mixed lengths is padding. Only the attention
between tokens needs rows; all other operations of a transformer are token-wise. So the real tokens of all rows are gathered
into one list, (tokens, width), and scattered back into rows, (batch, length, width), only for the attention. See Zeng et al. 2022, Boosting Distributed Training Performance of the Unpadded BERT Model (arXiv:2208.08124).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

PACKED = "packed/"
"""Prefix of the names of values stored as a packed list of tokens."""
_INDEX_PREFIX = "packing/"
"""Prefix of the names of values that locate the tokens."""
MASK = "attention_mask"
ROWS = ("batch", "length")
"""The axes of a value with one position per token of each row."""
ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Abs", "Erf", "Gelu", "Relu", "Sigmoid", "Tanh", "Softplus"}
)


def remove_padding(graph: Any) -> int:
    """Rewrite a graph with inferred shapes, in place; returns the number of nodes that read packed tokens.

    Inputs, outputs and weights stay unchanged. Outputs with one position per token repeat the row's last token at padding. The
    mask must be 1 at the tokens of each row and 0 at the padding to their right, and no row may be empty.
    """
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    mask_only = _depend_on(graph, MASK) - _depend_on(graph, "input_ids")

    def is_row(name: str) -> bool:
        shape = shapes.get(name, ())
        return len(shape) == 3 and shape[:2] == ROWS and name not in mask_only

    def reads_tokens(node: Any) -> bool:
        """Return whether a node is token-wise."""
        read = [name for name in node.input if name not in weights]
        if not read or not all(map(is_row, (*read, *node.output))):
            return False
        ranks = [weights[name] for name in node.input if name in weights]
        match node.op_type:
            case "MatMul":
                return node.input[0] in read and ranks == [2]
            case "LayerNormalization":
                return node.input[0] in read and all(rank == 1 for rank in ranks)
            case _:
                return node.op_type in ELEMENTWISE and all(rank <= 1 for rank in ranks)

    nodes = list(_rewrite(graph, reads_tokens, weights))
    packed: int = sum(node.name.startswith(PACKED) for node in nodes)
    if packed:
        del graph.node[:]
        graph.node.extend([*_find_tokens(), *nodes])
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, np.int64), _INDEX_PREFIX + name)
            for name, value in _CONSTANTS.items()
        )
    del graph.value_info[:]  # They describe rows; some are packed lists now.
    return packed


def _rewrite(graph: Any, reads_tokens: Any, weights: Collection[str]) -> Iterator[Any]:
    """Yield the nodes of the graph in topological order, with nodes that pack and unpack between them."""
    outputs = {value.name for value in graph.output}
    computed_packed, packed, unpacked = set[str](), set[str](), set[str]()

    def pack(name: str) -> Iterator[Any]:
        if name not in packed:
            packed.add(name)
            yield _node("GatherND", [name, _INDEX_PREFIX + "tokens"], PACKED + name)

    def unpack(name: str) -> Iterator[Any]:
        if name in computed_packed and name not in unpacked:
            unpacked.add(name)
            yield _node("Gather", [PACKED + name, _INDEX_PREFIX + "positions"], name)

    for node in graph.node:
        if not reads_tokens(node):
            for name in node.input:
                yield from unpack(name)
            yield node
            continue
        for name in node.input:
            if name not in weights:
                yield from pack(name)
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.name = PACKED + node.name
        copied.input[:] = [name if name in weights else PACKED + name for name in node.input]
        copied.output[:] = [PACKED + name for name in node.output]
        packed.update(node.output)
        computed_packed.update(node.output)
        yield copied
        for name in node.output:
            if name in outputs:
                yield from unpack(name)


_CONSTANTS: dict[str, Any] = {"flat": [-1], "first": 0, "one": 1}


def _find_tokens() -> Iterator[Any]:
    """Yield nodes that compute the coordinates of the real tokens, (tokens, 2), and the token at each position, (batch, length).

    At padding, the token is the last one before it, so that the values there are valid.
    """
    yield _node("NonZero", [MASK], _INDEX_PREFIX + "coordinates")
    yield _node("Transpose", [_INDEX_PREFIX + "coordinates"], _INDEX_PREFIX + "tokens", perm=[1, 0])
    yield _node("Reshape", [MASK, _INDEX_PREFIX + "flat"], _INDEX_PREFIX + "mask")
    yield _node("CumSum", [_INDEX_PREFIX + "mask", _INDEX_PREFIX + "first"], _INDEX_PREFIX + "counted")
    yield _node("Sub", [_INDEX_PREFIX + "counted", _INDEX_PREFIX + "one"], _INDEX_PREFIX + "numbers")
    yield _node("Shape", [MASK], _INDEX_PREFIX + "shape")
    yield _node("Reshape", [_INDEX_PREFIX + "numbers", _INDEX_PREFIX + "shape"], _INDEX_PREFIX + "positions")


def _node(kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> Any:
    """Return a node that is named after its output."""
    return helper.make_node(kind, list(inputs), [output], f"{kind}/{output}", **attributes)


def _shape(value: Any) -> tuple[Any, ...]:
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _depend_on(graph: Any, name: str) -> set[str]:
    """Return the names of all values computed from a value."""
    reached = {name}
    for node in graph.node:
        if not reached.isdisjoint(node.input):
            reached.update(node.output)
    return reached

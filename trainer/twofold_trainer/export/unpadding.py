"""Remove padding from a graph: token-wise operations run on the real tokens only.

Rows of a batch are padded to the longest. All of a transformer but the attention between tokens reads one token at a time,
and there it is a waste to compute padding: a batch of short texts of mixed lengths is half padding. So the real tokens of
all rows are gathered into one list, (tokens, width), and put back into rows, (batch, length, width), only where tokens meet
each other. See Zeng et al. 2022, Boosting Distributed Training Performance of the Unpadded BERT Model (arXiv:2208.08124).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

PACKED = "packed/"
"""Prefix of the names of values stored as a packed list of tokens."""
_OWN = "packing/"
"""Prefix of the names of values that locate the tokens."""
MASK = "attention_mask"
ROWS = ("batch", "length")
"""The axes of a value with one position per token of each row."""
ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Abs", "Erf", "Gelu", "Relu", "Sigmoid", "Tanh", "Softplus"}
)


def remove_padding(graph: Any) -> int:
    """Rewrite a graph in place, whose shapes are inferred; returns how many nodes read packed tokens now.

    Its inputs, outputs and weights stay as they are. At padding, outputs of one place for each token repeat the row's last
    token. The mask must be 1 at the tokens of each row and 0 at the padding right of them, and no row may be all padding.
    """
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    mask_only = _depend_on(graph, MASK) - _depend_on(graph, "input_ids")

    def is_row(name: str) -> bool:
        shape = shapes.get(name, ())
        return len(shape) == 3 and shape[:2] == ROWS and name not in mask_only

    def reads_tokens(node: Any) -> bool:
        """Tell whether a node computes each token by itself."""
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
            numpy_helper.from_array(np.asarray(value, np.int64), _OWN + name) for name, value in _CONSTANTS.items()
        )
    del graph.value_info[:]  # These describe rows where there are packed lists now.
    return packed


def _rewrite(graph: Any, reads_tokens: Any, weights: Collection[str]) -> Iterator[Any]:
    """Yield the graph's nodes, in an order in which they can be computed, with what packs and unpacks between them."""
    outputs = {value.name for value in graph.output}
    computed, lists, rows = set[str](), set[str](), set[str]()  # Computed as a list; there as a list; as rows again.

    def as_list(name: str) -> Iterator[Any]:
        if name not in lists:
            lists.add(name)
            yield _node("GatherND", [name, _OWN + "tokens"], PACKED + name)

    def as_rows(name: str) -> Iterator[Any]:
        if name in computed and name not in rows:
            rows.add(name)
            yield _node("Gather", [PACKED + name, _OWN + "places"], name)

    for node in graph.node:
        if not reads_tokens(node):
            for name in node.input:
                yield from as_rows(name)
            yield node
            continue
        for name in node.input:
            if name not in weights:
                yield from as_list(name)
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.name = PACKED + node.name
        copied.input[:] = [name if name in weights else PACKED + name for name in node.input]
        copied.output[:] = [PACKED + name for name in node.output]
        lists.update(node.output)
        computed.update(node.output)
        yield copied
        for name in node.output:
            if name in outputs:
                yield from as_rows(name)


_CONSTANTS: dict[str, Any] = {"flat": [-1], "first": 0, "one": 1}


def _find_tokens() -> Iterator[Any]:
    """Say where the real tokens are, (tokens, 2), and at each place of the rows, (batch, length), which token is there.

    At padding that is the last one before it, so that there are numbers like any others.
    """
    yield _node("NonZero", [MASK], _OWN + "coordinates")
    yield _node("Transpose", [_OWN + "coordinates"], _OWN + "tokens", perm=[1, 0])
    yield _node("Reshape", [MASK, _OWN + "flat"], _OWN + "mask")
    yield _node("CumSum", [_OWN + "mask", _OWN + "first"], _OWN + "counted")
    yield _node("Sub", [_OWN + "counted", _OWN + "one"], _OWN + "numbers")
    yield _node("Shape", [MASK], _OWN + "shape")
    yield _node("Reshape", [_OWN + "numbers", _OWN + "shape"], _OWN + "places")


def _node(kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> Any:
    """Make a node that is named after its output."""
    return helper.make_node(kind, list(inputs), [output], f"{kind}/{output}", **attributes)


def _shape(value: Any) -> tuple[Any, ...]:
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _depend_on(graph: Any, name: str) -> set[str]:
    """Return all that is computed from a value."""
    reached = {name}
    for node in graph.node:
        if not reached.isdisjoint(node.input):
            reached.update(node.output)
    return reached

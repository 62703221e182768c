"""Build a candidate's graph from its base's: the same nodes, new weights and, for a new fork, duplicated top blocks.

An export takes as long as half an epoch, and an adaptation changes only the rows of the heads and perhaps the fork. The
parity check runs on the result, as after an export.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file
from twofold_checkpoint.checkpoint import GRAPH, GRAPH_WEIGHTS, TRAINING_WEIGHTS
from twofold_checkpoint.manifest import Branch, HeadName

from twofold_trainer.errors import GraftError
from twofold_trainer.modeling.model import TwofoldModel

Array = NDArray[Any]
Names = frozenset[str]
"""Parameters that were equal when the base was exported, so that they share one tensor of its graph."""

HEAD_OUTPUTS: dict[HeadName, tuple[str, str]] = {
    "classifier": ("classifier_logits", "pooled"),
    "ner": ("ner_logits", "token_features"),
}
"""Graph outputs of each head's path."""
BRANCH_PREFIX = "branch/"
"""Prefix of the names of values in the branch."""


def graft(base: Path, branch: Branch | None, model: TwofoldModel, directory: Path) -> None:
    """Write model.onnx and model.onnx.data for a model that was adapted from a checkpoint's directory. Raises GraftError.

    *branch* is the fork of the base, if any. The tensors of the base's graph are matched by their values: each is a parameter or
    a transposed parameter.
    """
    if branch not in (None, model.division):
        raise GraftError("the fork of the base differs from that of the candidate")
    proto = onnx.load(base / GRAPH)
    before = {name: tensor.numpy() for name, tensor in load_file(base / TRAINING_WEIGHTS).items()}
    after = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    matches = match_tensors(proto.graph, before)
    if branch is None and model.branch_head is not None:
        matches |= fork(proto.graph, matches, _branch_names(model), HEAD_OUTPUTS[model.branch_head])
    _replace_parameters(proto.graph, matches, after)
    del proto.graph.value_info[:]  # They state the old sizes of the heads.
    onnx_ir.save(onnx_ir.from_proto(proto), directory / GRAPH, external_data=GRAPH_WEIGHTS)


def match_tensors(graph: Any, parameters: Mapping[str, Array]) -> dict[str, tuple[Names, bool]]:
    """Map each tensor of a graph to (parameters, whether transposed). Raises GraftError if a parameter is missing."""
    by_digest = _by_digest(parameters.items())
    transposed_by_digest = _by_digest((name, array.T) for name, array in parameters.items() if array.ndim > 1)
    matches: dict[str, tuple[Names, bool]] = {}
    for tensor in graph.initializer:
        digest = _digest(numpy_helper.to_array(tensor))
        if digest in by_digest:
            matches[tensor.name] = by_digest[digest], False
        elif digest in transposed_by_digest:
            matches[tensor.name] = transposed_by_digest[digest], True
    missing = parameters.keys() - {name for names, _ in matches.values() for name in names}
    if missing:
        raise GraftError(f"no tensor of the base's graph equals the parameter {min(missing)}")
    return matches


def fork(
    graph: Any, matches: Mapping[str, tuple[Names, bool]], branch: Mapping[str, str], outputs: Iterable[str]
) -> dict[str, tuple[Names, bool]]:
    """Duplicate all nodes that depend on the forked blocks, in place, and take *outputs* from the copies.

    *branch* maps parameters of blocks to those of the branch. Returns the parameters of the added tensors. Raises GraftError.
    """
    added: dict[str, tuple[Names, bool]] = {}
    copy_of: dict[str, str] = {}
    for tensor in list(graph.initializer):
        names, transposed = matches.get(tensor.name, (frozenset(), False))
        if not names & branch.keys():
            continue
        if not names <= branch.keys():
            raise GraftError(f"{min(names - branch.keys())} equals a parameter of a forked block")
        copied = graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name = copy_of[tensor.name] = BRANCH_PREFIX + tensor.name
        added[copied.name] = frozenset(branch[name] for name in names), transposed
    copies = []
    for node in graph.node:  # In topological order.
        if not copy_of.keys().isdisjoint(node.input):
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = BRANCH_PREFIX + node.name
            copy_of.update((name, BRANCH_PREFIX + name) for name in node.output)
            _rename([copied], copy_of)
            copies.append(copied)
    if missing := [name for name in outputs if name not in copy_of]:
        raise GraftError(f"{missing[0]} does not depend on the forked blocks")
    graph.node.extend(copies)
    # The outputs of a graph are identified by name.
    _rename(graph.node, {copy_of[name]: name for name in outputs} | {name: f"unused/{name}" for name in outputs})
    _prune(graph)
    return added


def _rename(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    for node in nodes:
        for tensor_names in (node.input, node.output):
            tensor_names[:] = [names.get(name, name) for name in tensor_names]


def _prune(graph: Any) -> None:
    """Remove nodes and tensors on which no output depends."""
    used, nodes = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if not used.isdisjoint(node.output):
            used.update(node.input)
            nodes.append(node)
    _set_items(graph.node, reversed(nodes))
    _set_items(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])


def _set_items(field: Any, items: Iterable[Any]) -> None:
    new = list(items)
    del field[:]
    field.extend(new)


def _replace_parameters(graph: Any, matches: Mapping[str, tuple[Names, bool]], parameters: Mapping[str, Array]) -> None:
    """Write a model's parameters into the graph, in place. Raises GraftError if parameters that share a tensor now differ."""
    for tensor in graph.initializer:
        if tensor.name not in matches:
            continue
        names, transposed = matches[tensor.name]
        first, *others = (parameters[name] for name in sorted(names))
        if not all(np.array_equal(first, array) for array in others):
            raise GraftError(f"{' and '.join(sorted(names))} were equal in the base and now differ")
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(first.T if transposed else first), tensor.name))
    rows = {f"{head}_logits": len(parameters[f"{head}.bias"]) for head in HEAD_OUTPUTS}
    for value in graph.output:
        if value.name in rows:
            value.type.tensor_type.shape.dim[-1].dim_value = rows[value.name]


def _branch_names(model: TwofoldModel) -> dict[str, str]:
    """Map the parameter names of forked blocks to their names in the branch."""
    assert model.branch is not None, "The model has no branch. This is a bug."
    names = {module: name for name, module in model.named_modules()}
    return {
        f"{names[block]}.{name}": f"{names[copied]}.{name}"
        for block, copied in zip(model.blocks()[model.fork_point :], model.branch, strict=True)
        for name in block.state_dict()
    }


def _by_digest(parameters: Iterable[tuple[str, Array]]) -> dict[bytes, Names]:
    names_by_digest: dict[bytes, Names] = {}
    for name, array in parameters:
        digest = _digest(array)
        names_by_digest[digest] = names_by_digest.get(digest, frozenset()) | {name}
    return names_by_digest


def _digest(array: Array) -> bytes:
    """Return a digest of the array's dtype, shape and values."""
    values = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    values.update(np.ascontiguousarray(array).data)
    return values.digest()

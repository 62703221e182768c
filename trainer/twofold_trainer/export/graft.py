"""Build a candidate's graph from its base's: the same nodes, new weights and, for a new fork, duplicated top blocks.

Exporting a model again takes as long as half an epoch, and an adaptation changes nothing in its structure but
the heads' rows and perhaps the fork. The parity check runs on the result, as it does after an export.
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
"""Parameters that had the same values when the base was exported, so that one tensor of its graph stands for them all."""

OWN_OUTPUTS: dict[HeadName, tuple[str, str]] = {
    "classifier": ("classifier_logits", "pooled"),
    "ner": ("ner_logits", "token_features"),
}
"""What a head's own path computes."""
FORKED = "branch/"
"""Prefix of the names of values that the branch computes."""


def graft(base: Path, division: Branch | None, model: TwofoldModel, directory: Path) -> None:
    """Write model.onnx and model.onnx.data for a model that was adapted from a checkpoint's directory. Raises GraftError.

    *division* says how the base is forked. Its graph's tensors are recognised by their values: each is a parameter, or
    the transpose of one.
    """
    if division not in (None, model.division):
        raise GraftError("the base is forked otherwise")
    proto = onnx.load(base / GRAPH)
    before = {name: tensor.numpy() for name, tensor in load_file(base / TRAINING_WEIGHTS).items()}
    after = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    known = recognise(proto.graph, before)
    if division is None and model.branch_head is not None:
        known |= fork(proto.graph, known, _branch_names(model), OWN_OUTPUTS[model.branch_head])
    _replace(proto.graph, known, after)
    del proto.graph.value_info[:]  # These hold the heads' old sizes.
    onnx_ir.save(onnx_ir.from_proto(proto), directory / GRAPH, external_data=GRAPH_WEIGHTS)


def recognise(graph: Any, parameters: Mapping[str, Array]) -> dict[str, tuple[Names, bool]]:
    """Map a graph's tensors to parameters, and note which are transposed. Raises GraftError if a parameter is missing."""
    straight = _by_digest(parameters.items())
    turned = _by_digest((name, array.T) for name, array in parameters.items() if array.ndim > 1)
    known = {}
    for tensor in graph.initializer:
        digest = _digest(numpy_helper.to_array(tensor))
        if digest in straight:
            known[tensor.name] = straight[digest], False
        elif digest in turned:
            known[tensor.name] = turned[digest], True
    missing = parameters.keys() - {name for names, _ in known.values() for name in names}
    if missing:
        raise GraftError(f"{min(missing)} is not in the base's graph as it is")
    return known


def fork(
    graph: Any, known: Mapping[str, tuple[Names, bool]], branch: Mapping[str, str], outputs: Iterable[str]
) -> dict[str, tuple[Names, bool]]:
    """Compute everything that depends on the forked blocks twice, in place, and take *outputs* from the second path.

    *branch* says which parameter of the branch is a block's. Returns what the added tensors are. Raises GraftError.
    """
    added: dict[str, tuple[Names, bool]] = {}
    twin: dict[str, str] = {}
    for tensor in list(graph.initializer):
        names, turned = known.get(tensor.name, (frozenset(), False))
        if not names & branch.keys():
            continue
        if not names <= branch.keys():
            raise GraftError(f"{min(names - branch.keys())} has the values of a block that is forked")
        copied = graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name = twin[tensor.name] = FORKED + tensor.name
        added[copied.name] = frozenset(branch[name] for name in names), turned
    second = []
    for node in graph.node:  # In the order in which they can be computed.
        if not twin.keys().isdisjoint(node.input):
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = FORKED + node.name
            twin.update((name, FORKED + name) for name in node.output)
            _rename([copied], twin)
            second.append(copied)
    if missing := [name for name in outputs if name not in twin]:
        raise GraftError(f"{missing[0]} does not depend on the forked blocks")
    graph.node.extend(second)
    # A graph's outputs are found by name.
    _rename(graph.node, {twin[name]: name for name in outputs} | {name: f"unused/{name}" for name in outputs})
    _prune(graph)
    return added


def _rename(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    for node in nodes:
        for tensor_names in (node.input, node.output):
            tensor_names[:] = [names.get(name, name) for name in tensor_names]


def _prune(graph: Any) -> None:
    """Remove what no output depends on."""
    used, nodes = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if not used.isdisjoint(node.output):
            used.update(node.input)
            nodes.append(node)
    _keep(graph.node, reversed(nodes))
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])


def _keep(field: Any, chosen: Iterable[Any]) -> None:
    kept = list(chosen)
    del field[:]
    field.extend(kept)


def _replace(graph: Any, known: Mapping[str, tuple[Names, bool]], parameters: Mapping[str, Array]) -> None:
    """Put a model's parameters into the graph, in place. Raises GraftError where one tensor stood for what differs now."""
    for tensor in graph.initializer:
        if tensor.name not in known:
            continue
        names, turned = known[tensor.name]
        first, *others = (parameters[name] for name in sorted(names))
        if not all(np.array_equal(first, array) for array in others):
            raise GraftError(f"{' and '.join(sorted(names))} were the same in the base and are not any more")
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(first.T if turned else first), tensor.name))
    rows = {f"{head}_logits": len(parameters[f"{head}.bias"]) for head in OWN_OUTPUTS}
    for value in graph.output:
        if value.name in rows:
            value.type.tensor_type.shape.dim[-1].dim_value = rows[value.name]


def _branch_names(model: TwofoldModel) -> dict[str, str]:
    """Map the parameter names of forked blocks to their names in the branch."""
    assert model.branch is not None, "A model without a branch was asked for its names. This is a bug."
    places = {module: name for name, module in model.named_modules()}
    return {
        f"{places[block]}.{name}": f"{places[own]}.{name}"
        for block, own in zip(model.blocks()[model.fork_point :], model.branch, strict=True)
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

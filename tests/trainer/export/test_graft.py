"""A candidate's graph is built from its base's, and computes what the model computes."""

from __future__ import annotations

import onnx
import pytest
import torch
from support import tiny_models
from support.exported_models import LABELS, Exported, move, save_base
from twofold_checkpoint.checkpoint import GRAPH, GRAPH_WEIGHTS
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS, Branch, HeadName
from twofold_trainer.errors import GraftError
from twofold_trainer.export.graft import graft
from twofold_trainer.export.onnx_export import Graph, measure_parity, parity_batches
from twofold_trainer.export.quantization import quantise_graph
from twofold_trainer.modeling.head_growth import grow_head
from twofold_trainer.modeling.model import save_model

pytestmark = pytest.mark.slow

AFTER = LabelSet(labels=("a", "b", "c", "d", "e"), entity_types=("x", "y"))
only_bert = pytest.mark.parametrize("exported_base", ["bert"], indirect=True)


def prove(exported: Exported, labels: LabelSet = LABELS) -> None:
    """Assert that the candidate's graph agrees with the model at all shapes."""
    batches = parity_batches([example.text for example in tiny_models.examples(12)], exported.encoder)
    graph = Graph(exported.candidate, threads=1)
    pad_id = exported.backbone.settings.pad_id
    assert measure_parity(exported.model, graph, batches, labels, pad_id).max_error <= 1e-4


def test_a_model_that_moved_and_grew_gets_its_bases_nodes(exported: Exported) -> None:
    """With other weights and more labels, the graph keeps the base's nodes, has the new output sizes, and can be quantised."""
    grow_head(
        exported.model,
        "classifier",
        torch.randn(2, exported.model.config.hidden_size),
        torch.zeros(exported.model.config.hidden_size),
    )
    move(exported.model)

    graft(exported.base, None, exported.model, exported.candidate)

    prove(exported, AFTER)
    before, after = (
        onnx.load(index / GRAPH, load_external_data=False).graph for index in (exported.base, exported.candidate)
    )
    assert [node.op_type for node in before.node] == [node.op_type for node in after.node]
    assert after.output[0].type.tensor_type.shape.dim[-1].dim_value == len(AFTER.labels)
    assert sorted(path.name for path in exported.candidate.iterdir()) == sorted([GRAPH, GRAPH_WEIGHTS])
    assert quantise_graph(exported.candidate) >= 4 * len(exported.model.blocks())


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("head", HEADS)
def test_a_fork_gets_its_blocks_nodes_twice_and_its_branch_again(
    exported: Exported, head: HeadName, blocks: int
) -> None:
    """A first fork of some or all blocks, and a later adaptation of the same branch, give graphs that agree with the model."""
    exported.model.fork(head, blocks)
    assert exported.model.branch is not None
    move(exported.model.branch)
    move(exported.model.head(head))

    graft(exported.base, None, exported.model, exported.candidate)
    prove(exported)

    save_model(exported.model, exported.candidate)
    exported.base, exported.candidate = exported.candidate, exported.base
    move(exported.model.branch)
    graft(exported.base, Branch(head=head, blocks=blocks), exported.model, exported.candidate)
    prove(exported)


@only_bert
def test_a_shared_tensor_that_diverged_cannot_be_grafted(exported: Exported) -> None:
    """Parameters that shared a tensor in the base and now differ cannot be grafted."""
    first, second = (block.output.dense.bias for block in exported.model.blocks()[:2])
    with torch.no_grad():
        second.copy_(first)
    save_base(exported.model, exported.backbone, exported.base)
    graft(exported.base, None, exported.model, exported.candidate)
    prove(exported)
    with torch.no_grad():
        second.add_(1.0)
    with pytest.raises(GraftError, match="were equal in the base and now differ"):
        graft(exported.base, None, exported.model, exported.candidate)


@only_bert
def test_a_base_that_is_forked_otherwise_or_of_other_weights_cannot_be_grafted(exported: Exported) -> None:
    """The error names the reason: another fork, or a parameter that the graph does not have."""
    with pytest.raises(GraftError, match="the fork of the base differs"):
        graft(exported.base, Branch(head="ner", blocks=1), exported.model, exported.candidate)
    move(exported.model.classifier)
    save_model(exported.model, exported.base)
    with pytest.raises(GraftError, match=r"no tensor of the base's graph equals the parameter classifier\.bias"):
        graft(exported.base, None, exported.model, exported.candidate)

"""A candidate's graph is made of its base's, and computes what the model does."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from twofold_checkpoint.checkpoint import GRAPH, GRAPH_WEIGHTS
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS, Branch, HeadName
from twofold_trainer.errors import GraftError
from twofold_trainer.export import Graph, export, measure_parity, parity_batches
from twofold_trainer.graft import graft
from twofold_trainer.growth import grow_head
from twofold_trainer.int8 import quantise_graph
from twofold_trainer.model import TwofoldModel, save_model

from trainer import tiny

BEFORE = LabelSet(labels=("a", "b", "c"), entity_types=("x", "y"))
AFTER = LabelSet(labels=("a", "b", "c", "d", "e"), entity_types=("x", "y"))


class World:
    """Hold a model and, in a directory, what its checkpoint has of it."""

    def __init__(self, architecture: str, directory: Path) -> None:
        self.backbone = tiny.make_backbone(architecture, directory / "backbone", layers=2)
        torch.manual_seed(1)
        self.model = TwofoldModel(self.backbone.module, BEFORE, self.backbone.pooling).eval()
        self.base, self.candidate = directory / "base", directory / "candidate"
        for place in (self.base, self.candidate):
            place.mkdir()
        move(self.model)
        self.export()

    def export(self) -> None:
        """Make the model the base."""
        export(self.model, self.base, max_tokens=self.backbone.settings.max_tokens)
        save_model(self.model, self.base)

    def copy(self, directory: Path) -> World:
        """Return a world with the same base, of which model and files can be changed."""
        copied = copy.copy(self)
        copied.model = copy.deepcopy(self.model)
        copied.base, copied.candidate = directory / "base", directory / "candidate"
        shutil.copytree(self.base, copied.base)
        copied.candidate.mkdir()
        return copied

    def prove(self, labels: LabelSet) -> None:
        """Hold the candidate's graph against the model, at all shapes."""
        encoder = Encoder(self.backbone.tokenizer, self.backbone.settings)
        batches = parity_batches([example.text for example in tiny.examples(12)], encoder)
        graph = Graph(self.candidate, threads=1)
        assert measure_parity(self.model, graph, batches, labels, self.backbone.settings.pad_id).max_error <= 1e-4


def move(module: torch.nn.Module) -> None:
    """Change every parameter, as training does."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base of each architecture; to export one takes seconds."""
    return World(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def world(exported: World, tmp_path: Path) -> World:
    """A base of each architecture, for one test."""
    return exported.copy(tmp_path)


def test_a_model_that_moved_and_grew_gets_its_bases_nodes(world: World) -> None:
    """With other weights and more labels the graph has the base's nodes and the new outputs' size, and can be quantised."""
    grow_head(
        world.model,
        "classifier",
        torch.randn(2, world.model.config.hidden_size),
        torch.zeros(world.model.config.hidden_size),
    )
    move(world.model)

    graft(world.base, None, world.model, world.candidate)

    world.prove(AFTER)
    before, after = (
        onnx.load(place / GRAPH, load_external_data=False).graph for place in (world.base, world.candidate)
    )
    assert [node.op_type for node in before.node] == [node.op_type for node in after.node]
    assert after.output[0].type.tensor_type.shape.dim[-1].dim_value == len(AFTER.labels)
    assert sorted(path.name for path in world.candidate.iterdir()) == sorted([GRAPH, GRAPH_WEIGHTS])
    assert quantise_graph(world.candidate) >= 4 * len(world.model.blocks())


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("head", HEADS)
def test_a_fork_gets_its_blocks_nodes_twice_and_its_branch_again(world: World, head: HeadName, blocks: int) -> None:
    """A first fork of some or all blocks, and a later adaptation of the same branch, compute what the model does."""
    world.model.fork(head, blocks)
    assert world.model.branch is not None
    move(world.model.branch)
    move(world.model.head(head))

    graft(world.base, None, world.model, world.candidate)
    world.prove(BEFORE)

    save_model(world.model, world.candidate)
    world.base, world.candidate = world.candidate, world.base
    move(world.model.branch)
    graft(world.base, Branch(head=head, blocks=blocks), world.model, world.candidate)
    world.prove(BEFORE)


def test_what_was_one_tensor_and_is_two_cannot_be_grafted(tmp_path: Path) -> None:
    """Biases that were equal share a tensor of the graph: it cannot tell them apart when they have moved apart."""
    world = World("bert", tmp_path)
    first, second = (block.output.dense.bias for block in world.model.blocks()[:2])
    with torch.no_grad():
        second.copy_(first)
    world.export()
    graft(world.base, None, world.model, world.candidate)
    world.prove(BEFORE)
    with torch.no_grad():
        second.add_(1.0)
    with pytest.raises(GraftError, match="were the same in the base"):
        graft(world.base, None, world.model, world.candidate)


def test_a_base_that_is_forked_otherwise_or_of_other_weights_cannot_be_grafted(tmp_path: Path) -> None:
    """The reason is said: another fork, or a parameter that the graph does not have."""
    world = World("bert", tmp_path)
    with pytest.raises(GraftError, match="forked otherwise"):
        graft(world.base, Branch(head="ner", blocks=1), world.model, world.candidate)
    move(world.model.classifier)
    save_model(world.model, world.base)
    with pytest.raises(GraftError, match=r"classifier\.bias is not in the base's graph"):
        graft(world.base, None, world.model, world.candidate)

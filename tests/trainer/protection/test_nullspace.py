"""Null-space training: covariances, complements, and updates that stay inside them with any optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_models
from torch import Tensor, nn
from torch.nn.utils import parametrize
from twofold_checkpoint.encoding import Encoder, Encoding, pad
from twofold_checkpoint.labels import LabelSet
from twofold_trainer.errors import RefusedError
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.protection.covariances import (
    Covariance,
    add_covariances,
    collect_covariances,
    load_covariances,
    save_covariances,
)
from twofold_trainer.protection.nullspace import (
    NullSpaceConstraint,
    constrain,
    eigen_split,
    leak_ratio,
)

ARCHITECTURES = ("bert", "distilbert", "gpt_neo", "modernbert")
LABELS = LabelSet(labels=("a", "b", "c"), entity_types=("city",))
OLD = [example.text for example in tiny_models.examples(60)]
SOME = OLD[:1]
"""So few that every layer keeps room to learn, and moves by more than its rounding."""
NEW = [example.text for example in tiny_models.restaurant(8)]
FEW = ("oslo", "a table")
"""So few tokens that they cannot fill a space of 32 dimensions."""


@dataclass
class World:
    """A small model of one architecture, and its encoder."""

    model: TwofoldModel
    encoder: Encoder

    @property
    def pad_id(self) -> int:
        """The id of padding."""
        return self.encoder.settings.pad_id

    def collect(self, texts: Sequence[str], blocks: Sequence[nn.Module] | None = None) -> dict[str, Covariance]:
        """Return the covariances of the given blocks, or of all."""
        chosen = self.model.blocks() if blocks is None else blocks
        return collect_covariances(self.model, chosen, [self.encoder.encode(texts)], self.pad_id)

    def answers(self, texts: Sequence[str]) -> Tensor:
        """Return all logits of the real tokens and of the texts, flat."""
        ids, mask = self.batch(texts)
        with torch.no_grad():
            output = self.model(ids, mask)
        return torch.cat([output.classifier_logits.flatten(), output.ner_logits[mask.bool()].flatten()])

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the ids and the mask of the texts' windows."""
        windows = [window for encoding in self.encoder.encode(texts) for window in encoding.windows]
        ids, mask = pad(windows, self.pad_id)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def learn(self, parameters: Sequence[nn.Parameter], steps: int, *, rate: float = 1e-3) -> None:
        """Train on new texts with arbitrary labels, with AdamW as in the trainer."""
        ids, mask = self.batch(NEW)
        wanted = torch.arange(len(ids)) % len(LABELS.labels)
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(ids, mask).classifier_logits, wanted).backward()
            optimizer.step()


def build(architecture: str, directory: Path, *, layers: int = 2) -> World:
    """Return a world whose heads depend on the backbone."""
    backbone = tiny_models.make_backbone(architecture, directory, layers=layers)
    torch.manual_seed(1)
    model = TwofoldModel(backbone.module, LABELS, backbone.pooling).eval()
    for head in (model.classifier, model.ner):
        nn.init.normal_(head.weight, std=0.2)
    return World(model, Encoder(backbone.tokenizer, backbone.settings))


@pytest.fixture(params=ARCHITECTURES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A world of each architecture."""
    return build(request.param, tmp_path / request.param)


@pytest.fixture
def bert(tmp_path: Path) -> World:
    """A world of the BERT architecture."""
    return build("bert", tmp_path / "bert")


def test_every_linear_layer_of_the_blocks_is_heard(world: World) -> None:
    """There is one covariance of the right width for each linear layer of the blocks, and no other."""
    block = world.model.blocks()[1]
    actual = world.collect(OLD, [block])
    named = {name: layer for name, layer in world.model.named_modules() if isinstance(layer, nn.Linear)}
    inside = {id(layer) for layer in block.modules()}

    assert set(actual) == {name for name, layer in named.items() if id(layer) in inside}
    assert len(actual) >= 4
    tokens = world.batch(OLD)[1].sum().item()
    for name, covariance in actual.items():
        assert covariance.total.shape == (named[name].in_features,) * 2
        assert covariance.total.dtype == torch.float64
        assert covariance.count == tokens


def test_covariances_are_those_of_the_inputs(bert: World) -> None:
    """The covariance of the first layer is that of the embeddings of the real tokens."""
    ids, mask = bert.batch(OLD)
    with torch.no_grad():
        entered = bert.model.backbone.embeddings(ids)[mask.bool()].double()
    actual = bert.collect(OLD)["backbone.encoder.layer.0.attention.self.query"]

    assert torch.allclose(actual.total, entered.T @ entered)


def test_padding_does_not_count(world: World) -> None:
    """Texts of different lengths in one batch give the same covariances as one by one."""
    together = world.collect(OLD[:12])
    encodings = world.encoder.encode(OLD[:12])
    assert len({len(encoding.ids) for encoding in encodings}) > 1
    alone = collect_covariances(world.model, world.model.blocks(), [[item] for item in encodings], world.pad_id)

    for name, covariance in together.items():
        assert covariance.count == alone[name].count
        assert torch.allclose(covariance.total, alone[name].total, rtol=1e-4, atol=1e-4)


def test_all_windows_of_a_long_text_count(bert: World) -> None:
    """A text of several windows contributes the tokens of each of them."""
    encodings = bert.encoder.encode([" ".join(OLD[:8])])
    windows = encodings[0].windows
    assert len(windows) > 1

    actual = collect_covariances(bert.model, bert.model.blocks(), [encodings], bert.pad_id)
    assert {covariance.count for covariance in actual.values()} == {sum(len(window.ids) for window in windows)}


def test_the_branch_of_a_fork_can_be_heard(bert: World) -> None:
    """The blocks of a branch have their own covariances, equal to those of the blocks that they were copied from."""
    bert.model.fork("ner", 1)
    actual = bert.collect(OLD, [bert.model.blocks()[1], *bert.model.branch])
    layers = {name: covariance for name, covariance in actual.items() if name.startswith("branch.0")}

    assert len(layers) == len(actual) / 2
    for name, covariance in layers.items():
        main = actual[name.replace("branch.0", "backbone.encoder.layer.1")]
        assert main.count == covariance.count
        assert torch.allclose(main.total, covariance.total)


def test_collecting_removes_its_hooks(bert: World) -> None:
    """After the collection, also with an error in it, the model has no hooks and is in its former mode."""
    bert.model.blocks()[1].train()
    modes = [module.training for module in bert.model.modules()]

    def broken() -> Sequence[Sequence[Encoding]]:
        yield bert.encoder.encode(OLD[:2])
        assert any(module._forward_pre_hooks for module in bert.model.modules())
        raise OSError("the disk is gone")

    bert.collect(OLD[:2])
    with pytest.raises(OSError, match="the disk is gone"):
        collect_covariances(bert.model, bert.model.blocks(), broken(), bert.pad_id)

    assert not any(module._forward_pre_hooks for module in bert.model.modules())
    assert [module.training for module in bert.model.modules()] == modes


def test_collecting_is_without_dropout(bert: World) -> None:
    """Covariances of a model in training mode are those of its evaluation mode."""
    calm = bert.collect(OLD)
    bert.model.train()
    trained = bert.collect(OLD)

    assert all(torch.equal(calm[name].total, covariance.total) for name, covariance in trained.items())


def test_covariances_add_up(bert: World) -> None:
    """The sum of the covariances of two sets of texts is that of both sets."""
    both = add_covariances(bert.collect(OLD[:30]), bert.collect(OLD[30:]))

    for name, covariance in bert.collect(OLD).items():
        assert both[name].count == covariance.count
        assert torch.allclose(both[name].total, covariance.total, rtol=1e-4, atol=1e-4)


def test_covariances_are_kept_bit_for_bit(bert: World, tmp_path: Path) -> None:
    """Saved and loaded covariances are equal in names, sums and counts."""
    actual = bert.collect(OLD)
    save_covariances(actual, tmp_path / "statistics.safetensors")
    loaded = load_covariances(tmp_path / "statistics.safetensors")

    assert set(loaded) == set(actual)
    for name, covariance in actual.items():
        assert torch.equal(loaded[name].total, covariance.total)
        assert loaded[name].count == covariance.count


@st.composite
def covariances(draw: st.DrawFn) -> Covariance:
    """Covariances of any width and rank whose directions differ in scale by up to six orders of magnitude."""
    width, tokens = draw(st.integers(1, 24)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scales = 10 ** (-draw(st.floats(0, 6)) * torch.rand(width, generator=generator, dtype=torch.float64))
    inputs = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * scales
    return Covariance(inputs.T @ inputs, tokens)


@settings(deadline=None)
@given(covariances(), st.floats(0.01, 1.0))
def test_the_split_is_orthonormal_and_the_smallest_that_holds_the_energy(covariance: Covariance, energy: float) -> None:
    """Both bases together are orthonormal, and the protected space is the smallest one with the requested energy."""
    protected, free = eigen_split(covariance, energy)
    width = len(covariance.total)
    basis = torch.cat([protected, free], dim=1)
    trace = covariance.total.trace()

    assert torch.equal(eigen_split(covariance, energy)[1], free)
    assert basis.shape == (width, width)
    assert torch.allclose(basis.T @ basis, torch.eye(width, dtype=torch.float64), atol=1e-12)
    held = (protected.T @ covariance.total @ protected).diagonal()
    assert held.sum() >= (energy - 1e-12) * trace
    assert held.sum() - held.min() < (energy + 1e-12) * trace


@settings(deadline=None)
@given(covariances(), st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5))
def test_capacity_falls_with_energy(covariance: Covariance, energies: list[float]) -> None:
    """The more energy is protected, the fewer directions are free, and these are among those of the lower energy."""
    frees = [eigen_split(covariance, energy)[1] for energy in sorted(energies)]

    for wider, narrower in itertools.pairwise(frees):
        assert narrower.shape[1] <= wider.shape[1]
        assert torch.equal(wider[:, : narrower.shape[1]], narrower)


@pytest.mark.parametrize(("rank", "width"), [(1, 8), (5, 32), (31, 32), (32, 32), (0, 4)])
def test_full_energy_protects_exactly_the_rank(rank: int, width: int) -> None:
    """At energy 1 the protected space has exactly the rank of the covariance; rounding does not count as energy."""
    torch.manual_seed(0)
    inputs = torch.randn(rank, width).repeat(20, 1).double()

    assert eigen_split(Covariance(inputs.T @ inputs, len(inputs)), 1.0)[1].shape == (width, width - rank)


def test_updates_do_not_leak(world: World) -> None:
    """After 500 steps of AdamW with weight decay, every layer has changed, but only outside its protected space.

    This is measured before and after the merge, in float64 and on the stored float32 weights.
    """
    constraint = constrain(world.model, world.collect(SOME))
    before = constraint.leak()
    world.learn(constraint.parameters(), 500)
    trained = constraint.leak()
    constraint.merge()
    merged = constraint.leak()

    assert (before.leak, before.excess) == (0.0, 0.0)
    assert all(coefficients.norm() > 0.05 for coefficients in constraint.parameters())
    assert 0 < trained.leak < 1e-6
    assert merged == trained
    assert merged.layers == len(constraint.parameters())
    assert 0 < merged.capacity < 1


def test_a_gradient_projected_before_adam_leaks(bert: World) -> None:
    """If the gradient is projected instead, more than 1 % of the update leaks into the protected space."""
    bases = {name: eigen_split(covariance) for name, covariance in bert.collect(SOME).items()}
    layers = {name: layer for name, layer in bert.model.named_modules() if name in bases}
    old = {name: layer.weight.detach().clone() for name, layer in layers.items()}

    def projecting(protected: Tensor) -> Callable[[Tensor], Tensor]:
        projector = (protected @ protected.T).float()
        return lambda gradient: gradient - gradient @ projector

    for name, layer in layers.items():
        layer.weight.register_hook(projecting(bases[name][0]))
    bert.learn([layer.weight for layer in layers.values()], 500)

    leaks = [leak_ratio(layer.weight - old[name], bases[name][0]) for name, layer in layers.items()]
    assert max(leaks) > 0.01


def test_a_tiny_update_leaks_no_more_than_its_rounding(bert: World) -> None:
    """An update near the rounding limit has no excess leak, but a real leak of its size has one."""
    constraint = constrain(bert.model, bert.collect(OLD))
    bert.learn(constraint.parameters(), 3, rate=1e-6)
    constraint.merge()
    leak = constraint.leak()
    assert leak.leak > 1e-6
    assert leak.excess < 1e-6

    name = "backbone.encoder.layer.1.output.dense"
    layer = bert.model.get_submodule(name)
    protected, _ = eigen_split(bert.collect(OLD)[name])
    with torch.no_grad():
        layer.weight += 1e-5 * (torch.ones(len(layer.weight), 1) @ protected[:, -1:].T.float())
    again = constraint.leak()
    assert again.layer == name
    assert again.excess > 0.1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ([[0.0, 0.0]], 0.0),
        ([[0.0, 2.0]], 0.0),
        ([[3.0, 4.0]], 0.6),
        ([[-3.0, 0.0]], 1.0),
        ([[float("nan"), 0.0]], 1.0),
        ([[0.0, float("inf")]], 1.0),
    ],
)
def test_the_leak_of_a_change(change: list[list[float]], expected: float) -> None:
    """The leak is the protected share of a change's norm, and 1 for weights that are not finite."""
    assert leak_ratio(torch.tensor(change), torch.tensor([[1.0], [0.0]]).double()) == pytest.approx(expected)


def test_broken_weights_are_an_excess(bert: World) -> None:
    """A layer whose weights are not finite is named, and its whole change counts as excess."""
    constraint = constrain(bert.model, bert.collect(SOME))
    with torch.no_grad():
        constraint.parameters()[3].fill_(float("nan"))
    leak = constraint.leak()

    assert (leak.leak, leak.excess) == (1.0, 1.0)
    assert leak.layer == list(constraint.capacities)[3]


def test_protected_texts_are_answered_as_before(world: World) -> None:
    """At energy 1, protected texts keep their answers while others change."""
    old, new = world.answers(FEW), world.answers(NEW)
    with constrain(world.model, world.collect(FEW), 1.0) as constraint:
        world.learn(constraint.parameters(), 100)

    assert (world.answers(NEW) - new).abs().max() > 0.1
    assert (world.answers(FEW) - old).abs().max() < 1e-5


def test_free_weights_answer_protected_texts_otherwise(bert: World) -> None:
    """The same training without the constraint changes the protected answers."""
    old = bert.answers(FEW)
    names = bert.collect(FEW)
    bert.learn([layer.weight for name, layer in bert.model.named_modules() if name in names], 100)

    assert (bert.answers(FEW) - old).abs().max() > 0.1


def test_two_rounds_protect_both(bert: World) -> None:
    """With the covariances of two rounds added, a third training keeps the answers of both."""
    first, second = FEW[:1], FEW[1:]
    kept = bert.collect(first)
    old = bert.answers(first)
    with constrain(bert.model, kept, 1.0) as constraint:
        bert.learn(constraint.parameters(), 60)
        wide = constraint.capacity
    between = bert.answers(second)
    with constrain(bert.model, add_covariances(kept, bert.collect(second)), 1.0) as constraint:
        bert.learn(constraint.parameters(), 60)
        narrow = constraint.capacity

    assert 0 < narrow < wide
    assert (bert.answers(first) - old).abs().max() < 1e-5
    assert (bert.answers(second) - between).abs().max() < 1e-5


def shape(model: nn.Module) -> tuple[object, ...]:
    """Return the structure of a model: modules, names in order, identities and trainable parameters."""
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        list(model.state_dict()),
        [(name, id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()],
        any(module._forward_pre_hooks or module._forward_hooks for module in model.modules()),
    )


@pytest.mark.parametrize("ending", ["merge", "drop"])
def test_the_end_restores_the_structure(world: World, ending: str) -> None:
    """After merge() the model has its former structure and its last answers, and after drop() its first answers."""
    next(iter(world.model.backbone.parameters())).requires_grad_(requires_grad=False)
    whole, first = shape(world.model), world.answers(NEW)
    state = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}
    constraint = constrain(world.model, world.collect(OLD))
    world.learn(constraint.parameters(), 3)
    last = world.answers(NEW)
    getattr(constraint, ending)()

    assert shape(world.model) == whole
    assert not torch.equal(first, last)
    assert torch.equal(world.answers(NEW), last if ending == "merge" else first)
    moved = {name for name, tensor in world.model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert moved == ({f"{name}.weight" for name in constraint.capacities} if ending == "merge" else set())


def test_only_the_coefficients_and_the_heads_can_be_trained(world: World) -> None:
    """Under a constraint, only the coefficients of the backbone have gradients."""
    constraint = constrain(world.model, world.collect(OLD))
    trained = {name: parameter for name, parameter in world.model.named_parameters() if parameter.requires_grad}
    heads = {"classifier.weight", "classifier.bias", "ner.weight", "ner.bias"}

    assert set(trained) == {*constraint.names, *heads}
    assert [id(trained[name]) for name in constraint.names] == [id(item) for item in constraint.parameters()]


def test_an_error_drops_the_update(bert: World) -> None:
    """An error inside the context restores the old weights."""
    state = {name: tensor.clone() for name, tensor in bert.model.state_dict().items()}

    def fail(constraint: NullSpaceConstraint) -> None:
        bert.learn(constraint.parameters(), 2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"), constrain(bert.model, bert.collect(OLD)) as constraint:
        fail(constraint)

    assert all(torch.equal(tensor, state[name]) for name, tensor in bert.model.state_dict().items())
    assert not any(parametrize.is_parametrized(module) for module in bert.model.modules())


def test_a_full_space_is_exhausted(bert: World) -> None:
    """If protected inputs span the whole space of every layer, nothing can be trained."""
    full = {name: Covariance(torch.eye(len(item.total)).double(), 1) for name, item in bert.collect(FEW).items()}
    state = {name: tensor.clone() for name, tensor in bert.model.state_dict().items()}
    with constrain(bert.model, full) as constraint:
        bert.learn(constraint.parameters(), 2)
    leak = constraint.leak()

    assert leak.exhausted
    assert leak.capacity == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in bert.model.state_dict().items())
    assert not constrain(bert.model, bert.collect(FEW)).leak().exhausted


def test_nothing_to_collect_is_refused(bert: World) -> None:
    """Errors name missing texts, missing linear layers, layers that are never called, and layers that do not read tokens."""
    block = bert.model.blocks()[1]
    with pytest.raises(RefusedError, match="no protected texts"):
        collect_covariances(bert.model, [block], [], bert.pad_id)
    with pytest.raises(RefusedError, match="no linear layer"):
        bert.collect(OLD, [nn.LayerNorm(4)])

    block.gate = nn.Linear(32, 32)
    with pytest.raises(RefusedError, match=r"layer\.1\.gate was never called"):
        bert.collect(OLD[:2])
    hook = block.output.register_forward_hook(lambda _, __, hidden: hidden * block.gate(hidden[:, :1]))
    with pytest.raises(RefusedError, match=r"layer\.1\.gate gets 2 vectors for \d+ tokens"):
        bert.collect(OLD[:2])
    hook.remove()


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.001, float("nan")])
def test_an_impossible_energy_is_refused(energy: float) -> None:
    """An energy outside (0, 1] is rejected with its value."""
    with pytest.raises(RefusedError, match=f"energy {energy} must be above 0"):
        eigen_split(Covariance(torch.eye(3).double(), 1), energy)


def test_covariances_that_do_not_fit_are_refused(bert: World) -> None:
    """Covariances of other layers, widths or models are rejected, and the error names the layer."""
    narrow = Covariance(torch.eye(3).double(), 1)
    wide = Covariance(torch.eye(4).double(), 1)
    query = "backbone.encoder.layer.0.attention.self.query"
    with pytest.raises(RefusedError, match="widths 3 and 4"):
        narrow + wide
    with pytest.raises(RefusedError, match="only one side has b"):
        add_covariances({"a": narrow}, {"a": narrow, "b": wide})
    with pytest.raises(RefusedError, match="there are no covariances"):
        constrain(bert.model, {})
    with pytest.raises(RefusedError, match="nowhere with 3 inputs, but the model has no such layer"):
        constrain(bert.model, {"nowhere": narrow})
    with pytest.raises(RefusedError, match=r"self\.query with 3 inputs, but the model has 32"):
        constrain(bert.model, {query: narrow})
    with pytest.raises(RefusedError, match="not finite"):
        constrain(bert.model, {query: Covariance(torch.full((32, 32), float("nan")).double(), 1)})

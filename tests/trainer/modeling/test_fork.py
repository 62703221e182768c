"""Forked models and cached prefixes, of every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny_models
from twofold_checkpoint.encoding import Encoder, Encoding
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS
from twofold_trainer.export.onnx_export import Graph, export, measure_parity, parity_batches
from twofold_trainer.modeling.features import compute_features
from twofold_trainer.modeling.freezing import freeze_all_but, is_untouched, trainable_groups
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.modeling.prefix_cache import PrefixCache

pytestmark = pytest.mark.slow

LABELS = LabelSet(labels=("a", "b"), entity_types=("city",))


class World:
    """A model of four blocks with its encoder and texts, one of them with several windows."""

    def __init__(self, architecture: str, directory: Path) -> None:
        backbone = tiny_models.make_backbone(architecture, directory, layers=4)
        torch.manual_seed(0)
        self.model = TwofoldModel(backbone.module, LABELS, backbone.pooling).eval()
        self.encoder = Encoder(backbone.tokenizer, backbone.settings)
        texts = [example.text for example in tiny_models.examples(6)]
        self.encodings: list[Encoding] = self.encoder.encode([*texts, " ".join(texts * 4)])
        self.pad_id = backbone.settings.pad_id

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the texts."""
        with torch.no_grad():
            features = compute_features(self.model, self.encodings, self.pad_id)
            return self.model.classifier(features.pooled), self.model.ner(features.tokens)

    def shake(self, names: list[str]) -> None:
        """Change the named tensors."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name in names:
                parameters[name].add_(0.05 * torch.randn_like(parameters[name]))


@pytest.fixture(params=tiny_models.ARCHITECTURES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A world of each architecture."""
    return World(request.param, tmp_path / request.param)


@pytest.mark.parametrize("head", HEADS)
def test_a_fork_answers_as_before_until_it_is_trained(world: World, head: str) -> None:
    """A new fork gives the same answers, and training one path changes no bit of the other head's answers."""
    before = world.logits()
    world.model.fork(head, 2)
    forked = world.logits()
    names = [name for group in trainable_groups(world.model, (head,), 2) for name in group.names]
    world.shake(names)
    after = world.logits()

    own, others = (0, 1) if head == "classifier" else (1, 0)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(before, forked, strict=True))
    assert torch.equal(after[others], forked[others])
    assert not torch.allclose(after[own], forked[own], atol=1e-3)
    assert is_untouched(world.model, head, names)


@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("head", HEADS)
def test_after_a_fork_the_other_head_has_blocks_of_its_own_too(world: World, head: str, blocks: int) -> None:
    """The head that kept the backbone's blocks can also train them without any change for the other head."""
    world.model.fork(head, blocks)
    before = world.logits()
    other_name = "ner" if head == "classifier" else "classifier"
    names = [name for group in trainable_groups(world.model, (other_name,), blocks) for name in group.names]
    world.shake(names)

    forked = 0 if head == "classifier" else 1
    assert torch.equal(world.logits()[forked], before[forked])
    assert is_untouched(world.model, other_name, names)


@pytest.mark.parametrize("head", HEADS)
def test_below_a_fork_nothing_is_one_heads_own(world: World, head: str) -> None:
    """Training a block below the fork, or a parameter outside the blocks, changes the input of the other head."""
    world.model.fork(head, 2)
    other_name = "ner" if head == "classifier" else "classifier"
    for blocks in (3, 4):
        names = [name for group in trainable_groups(world.model, (other_name,), blocks) for name in group.names]
        assert not is_untouched(world.model, other_name, names)


def test_one_path_gives_the_features_of_its_head(world: World) -> None:
    """For one head, a forked model runs only that head's path and gives the same features."""
    world.model.fork("ner", 2)
    world.shake([name for group in trainable_groups(world.model, ("ner",), 2) for name in group.names])
    with torch.no_grad():
        both = compute_features(world.model, world.encodings, world.pad_id)
        ner = compute_features(world.model, world.encodings, world.pad_id, heads=("ner",))
        classifier = compute_features(world.model, world.encodings, world.pad_id, heads=("classifier",))

    assert torch.allclose(ner.tokens, both.tokens, atol=1e-5)
    assert torch.allclose(classifier.pooled, both.pooled, atol=1e-5)


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_cached_step_equals_an_uncached_one(world: World, depth: int, forked: bool) -> None:
    """Loss and gradients are equal whether the frozen prefix runs or its output is cached."""
    model = world.model
    if forked:
        model.fork("ner", 2)
    names = [
        name for group in trainable_groups(model, ("ner",), 4 - depth if not forked else 2) for name in group.names
    ]
    freeze_all_but(model, names)
    model.eval()  # Without dropout, which would differ between the two.
    cache = PrefixCache(model, depth, world.pad_id)
    assert list(cache.fill(world.encodings, rows=3)) == [3, 6, 7]
    actual = []
    for features in (
        compute_features(model, world.encodings, world.pad_id),
        cache.features(world.encodings),
    ):
        loss = model.ner(features.tokens).square().mean() + model.classifier(features.pooled).square().mean()
        model.zero_grad()
        loss.backward()
        parameters = dict(model.named_parameters())
        actual.append((loss.item(), {name: parameters[name].grad.clone() for name in names}))

    (plain, gradients), (cached, cached_gradients) = actual
    assert cached == pytest.approx(plain, rel=1e-5)
    for name in names:
        assert torch.allclose(gradients[name], cached_gradients[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("forked", [False, True])
def test_a_cached_pass_runs_the_upper_blocks_once(world: World, forked: bool) -> None:
    """One run of the shared blocks serves both heads, and nothing below the cached prefix runs."""
    model = world.model
    if forked:
        model.fork("ner", 1)
    cache = PrefixCache(model, 2, world.pad_id)
    list(cache.fill(world.encodings, rows=8))
    runs = [0] * len(model.blocks())
    for index, block in enumerate(model.blocks()):
        block.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))

    cache.features(world.encodings)

    assert runs == [0, 0, 1, 1]


def test_a_forked_model_is_one_graph(world: World, tmp_path: Path) -> None:
    """Both paths are exported as one graph that agrees with the model at every shape."""
    world.model.fork("ner", 2)
    world.shake([name for group in trainable_groups(world.model, ("ner",), 2) for name in group.names])
    export(world.model, tmp_path, max_tokens=world.encoder.settings.max_tokens)
    graph = Graph(tmp_path, threads=1)
    batches = parity_batches([example.text for example in tiny_models.examples(6)], world.encoder)

    measured = measure_parity(world.model, graph, batches, LABELS, world.pad_id)

    assert measured.max_error <= 1e-4

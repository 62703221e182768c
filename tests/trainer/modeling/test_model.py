"""The model: blocks, pooling, growth and saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny_models
from torch import nn
from twofold_checkpoint.decoding import merge_tokens, merge_windows
from twofold_checkpoint.encoding import Encoder, pad
from twofold_checkpoint.labels import LabelSet
from twofold_trainer.datasets.targets import make_targets
from twofold_trainer.errors import FrozenMovedError
from twofold_trainer.modeling.blocks import find_blocks
from twofold_trainer.modeling.features import FeatureCache, compute_features, live
from twofold_trainer.modeling.freezing import digest, freeze_all_but, trainable_groups, verify_frozen
from twofold_trainer.modeling.head_growth import class_means
from twofold_trainer.modeling.model import TwofoldModel, append_rows, pool, restore, snapshot

LABELS = LabelSet(labels=("a", "b"), entity_types=("city",))
BLOCK_CLASSES = {
    "bert": "BertLayer",
    "distilbert": "TransformerBlock",
    "roberta": "RobertaLayer",
    "gpt_neo": "GPTNeoBlock",
    "modernbert": "ModernBertEncoderLayer",
}


@pytest.fixture(params=tiny_models.ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> TwofoldModel:
    """A model of each architecture with four blocks."""
    backbone = tiny_models.make_backbone(request.param, tmp_path / request.param, layers=4)
    return TwofoldModel(backbone.module, LABELS, backbone.pooling).eval()


def test_blocks_are_found(model: TwofoldModel) -> None:
    """The blocks of every architecture are found, bottom first."""
    blocks = model.blocks()

    assert {type(block).__name__ for block in blocks} == {BLOCK_CLASSES[model.config.model_type.replace("-", "_")]}
    names = [name for name, module in model.named_modules() if any(module is block for block in blocks)]
    assert [int(name.rpartition(".")[2]) for name in names] == [0, 1, 2, 3]


def test_an_unknown_architecture_is_one_block() -> None:
    """A backbone without a list of blocks counts as one block."""
    backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    assert find_blocks(backbone, 3) == [backbone]


@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
def test_a_stage_trains_only_its_groups(model: TwofoldModel, blocks: int) -> None:
    """The groups of a stage are disjoint, reach the requested depth, and exclude the other head and the token embeddings."""
    groups = trainable_groups(model, ("ner",), blocks)
    names = [name for group in groups for name in group.names]
    freeze_all_but(model, names)

    assert len(names) == len(set(names))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(names)
    assert [group.depth for group in groups][: blocks + 1] == [None, *range(blocks)]
    assert not any(name.startswith("classifier") for name in names)
    words = {id(parameter) for parameter in model.token_embeddings()}
    movable = {
        name
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.") and id(parameter) not in words
    }
    assert len(words) == 1
    assert ({name for name in names if name.startswith("backbone.")} == movable) == (blocks == 4)
    assert [block.training for block in model.blocks()] == [number >= 4 - blocks for number in range(4)]


def test_the_proof_names_a_tensor_that_moved(model: TwofoldModel) -> None:
    """Equal tensors have equal digests, and one changed bit of a frozen tensor is detected and named."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.ner.bias[0] += 1

    proof = verify_frozen(before, model.state_dict(), {"ner.bias"})
    assert proof.digest_before == proof.digest_after
    assert proof.parameters == len(before) - 1

    with torch.no_grad():
        model.classifier.bias[0] += 1e-7
    with pytest.raises(FrozenMovedError, match=r"classifier\.bias"):
        verify_frozen(before, model.state_dict(), {"ner.bias"})


def test_digests_know_name_type_and_shape() -> None:
    """The digest depends on name, type, shape and bytes of each tensor, but not on the order of the names."""
    item = torch.zeros(4)
    digests = [
        digest({"a": item}, ["a"]),
        digest({"b": item}, ["b"]),
        digest({"a": item.reshape(2, 2)}, ["a"]),
        digest({"a": item.to(torch.int32)}, ["a"]),
        digest({"a": item + 1}, ["a"]),
    ]

    assert len(set(digests)) == len(digests)
    assert digest({"a": item, "b": item}, ["a", "b"]) == digest({"b": item, "a": item}, ["b", "a"])


def test_restoring_is_exact(model: TwofoldModel) -> None:
    """A restored model has the bytes that were copied."""
    names = [name for name, _ in model.named_parameters()]
    before = digest(model.state_dict(), names)
    saved = snapshot(model, names)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    restore(model, saved)

    assert digest(model.state_dict(), names) == before


@pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 5.0]), ("cls", [1.0, 4.0]), ("last", [3.0, 6.0])])
def test_pooling_is_blind_to_padding(pooling: str, expected: list[float]) -> None:
    """Mean, first-token and last-token pooling ignore padding."""
    features = torch.tensor([[[1.0], [2.0], [3.0], [99.0]], [[4.0], [6.0], [99.0], [99.0]]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])

    assert pool(features, mask, pooling).squeeze(1).tolist() == expected


def test_grown_heads_keep_their_old_rows() -> None:
    """Old rows keep their bytes and positions; new rows have their mean norm and the same mean logit."""
    head = nn.Linear(8, 3)
    centre = torch.randn(8)
    grown = append_rows(head, torch.randn(2, 8), centre)

    assert torch.equal(grown.weight[:3], head.weight)
    assert torch.equal(grown.bias[:3], head.bias)
    assert grown.weight[3:].norm(dim=1).tolist() == pytest.approx([head.weight.norm(dim=1).mean().item()] * 2)
    assert grown(centre)[3:].tolist() == pytest.approx([head(centre).mean().item()] * 2, abs=1e-5)


def test_new_rows_point_at_their_class(model: TwofoldModel) -> None:
    """A row initialised from a class mean has a higher logit for the mean text of its class than for that of the other class."""
    encoder = _encoder(model)
    labels = LabelSet(labels=("recipe", "taxi"), entity_types=())
    targets = make_targets(tiny_models.intents(20), encoder, labels)
    with torch.no_grad():
        seen = [
            (encoding, compute_features(model, [encoding.encoding], encoder.settings.pad_id)) for encoding in targets
        ]
        rows, centre = class_means(seen, "classifier", [0, 1], model.config.hidden_size)
        head = append_rows(nn.Linear(model.config.hidden_size, 1), rows, centre)
        scores = torch.stack([head(features.pooled[0])[1:] for _, features in seen])

    own = torch.tensor([target.label for target in targets])
    for label in (0, 1):
        assert scores[own == label].mean(dim=0).argmax() == label


def _encoder(model: TwofoldModel) -> Encoder:
    backbone = Path(model.config._name_or_path)
    from twofold_trainer.modeling.backbone import load_backbone

    loaded = load_backbone(str(backbone))
    return Encoder(loaded.tokenizer, loaded.settings)


def test_flat_features_give_the_logits_of_serving(model: TwofoldModel) -> None:
    """Heads on merged features give the merged logits, for texts of one or more windows, cached or not."""
    encoder = _encoder(model)
    pad_id = encoder.settings.pad_id
    texts = [example.text for example in tiny_models.examples(5)]
    encodings = encoder.encode([*texts, " ".join(texts * 4)])
    assert len(encodings[-1].windows) > 1
    with torch.no_grad():
        flat = compute_features(model, encodings, pad_id)
        cache = FeatureCache()
        done = list(cache.fill(live(model, pad_id), encodings, rows=4))
        kept = cache.get(encodings)
        classifier, ner = model.classifier(flat.pooled), model.ner(flat.tokens)
    assert done == [4, 6]
    assert torch.allclose(kept.pooled, flat.pooled, atol=1e-5)
    assert torch.allclose(kept.tokens, flat.tokens, atol=1e-5)

    index = 0
    for row, encoding in enumerate(encodings):
        ids, mask = (torch.from_numpy(array) for array in pad(encoding.windows, pad_id))
        with torch.no_grad():
            output = model(ids, mask)
        label_logits = merge_windows(encoding, list(output.classifier_logits.numpy()))
        tag_logits = merge_tokens(encoding, list(output.ner_logits.numpy()))
        assert torch.allclose(classifier[row], torch.from_numpy(label_logits), atol=1e-5)
        assert torch.allclose(ner[index : index + len(tag_logits)], torch.from_numpy(tag_logits), atol=1e-5)
        index += len(tag_logits)
    assert index == len(ner)

"""Mixed precision: where it is used, and where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny_models
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.labels import LabelSet
from twofold_trainer import recipe
from twofold_trainer.modeling.features import live
from twofold_trainer.modeling.mixed_precision import has_bf16, in_mixed_precision
from twofold_trainer.modeling.model import TwofoldModel


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_features_come_in_fp32_and_close_to_those_of_full_precision(architecture: str, tmp_path: Path) -> None:
    """The blocks multiply in bf16, and the heads receive fp32 features close to those of full precision."""
    backbone = tiny_models.make_backbone(architecture, tmp_path)
    torch.manual_seed(0)
    model = TwofoldModel(backbone.module, LabelSet(labels=("a", "b"), entity_types=("city",)), backbone.pooling).eval()
    encoder = Encoder(backbone.tokenizer, backbone.settings)
    texts = [example.text for example in tiny_models.examples(6)]
    encodings = encoder.encode([*texts, " ".join(texts * 4)])
    source = live(model, backbone.settings.pad_id)

    full, mixed = source(encodings), in_mixed_precision(source)(encodings)
    (mixed.pooled.sum() + mixed.tokens.sum()).backward()

    for left, right in ((full.pooled, mixed.pooled), (full.tokens, mixed.tokens)):
        assert right.dtype == torch.float32
        assert not torch.equal(left, right)
        assert torch.nn.functional.cosine_similarity(left, right).min() > 0.99
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize(
    ("bf16", "hidden_size", "mixed"), [(True, 384, True), (True, 32, False), (False, 384, False), (False, 32, False)]
)
def test_it_is_chosen_where_it_gains(bf16: bool, hidden_size: int, mixed: bool) -> None:
    """A CPU without bf16 and a small model train in fp32 unless requested otherwise."""
    chosen = recipe.init_recipe(blocks=2, examples=100, hidden_size=hidden_size, bf16=bf16)
    requested = recipe.Hyperparameters(mixed_precision=not mixed)

    assert chosen.mixed_precision is mixed
    assert recipe.apply_hyperparameters(requested, chosen, blocks=2).mixed_precision is not mixed


def test_bf16_depends_on_the_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either instruction set is enough, and a torch release that cannot tell counts as none."""
    for able, expected in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert has_bf16() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert has_bf16() is False

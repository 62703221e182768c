"""One backbone, two heads, one forward pass."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from twofold_checkpoint.checkpoint import BACKBONE_CONFIG, TRAINING_WEIGHTS, Checkpoint
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName

ATTENTION = "eager"
"""The one attention that every architecture has and that exports to plain operators; at our lengths as fast as SDPA."""

Pooling = Literal["mean", "cls", "last"]


class Output(NamedTuple):
    """What one forward pass gives; the names are those of the exported graph's outputs."""

    classifier_logits: Tensor
    """(rows, labels)."""
    ner_logits: Tensor
    """(rows, tokens, tags)."""
    pooled: Tensor
    """(rows, hidden)."""
    token_features: Tensor
    """(rows, tokens, hidden)."""


class TwofoldModel(nn.Module):
    """Hold a backbone with a classifier and an NER head. Rows are padded on the right."""

    def __init__(self, backbone: nn.Module, labels: LabelSet, pooling: Pooling) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:
            # BERT's own pooler: we pool ourselves, and it would be carried along untrained.
            setattr(backbone, "pooler", None)  # noqa: B010 -- torch types attributes as modules.
        config = _config(backbone)
        config.use_cache = False
        self.backbone = backbone
        self.pooling = pooling
        self.classifier = nn.Linear(config.hidden_size, len(labels.labels))
        self.ner = nn.Linear(config.hidden_size, len(labels.tags))
        for head in (self.classifier, self.ner):
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return _config(self.backbone)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Run both heads on (rows, tokens) of ids and their mask."""
        features = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        # Says to the exporter what GPT-Neo's own shape arithmetic hides: rows and tokens are those of the input.
        features = features.view(*input_ids.shape, -1)
        pooled = pool(features, attention_mask, self.pooling)
        return Output(self.classifier(pooled), self.ner(features), pooled, features)

    def head(self, name: HeadName) -> nn.Linear:
        """Return a head by name."""
        return self.classifier if name == "classifier" else self.ner

    def token_embeddings(self) -> list[nn.Parameter]:
        """Return the table of token vectors."""
        table: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return list(table.parameters())

    def blocks(self) -> list[nn.Module]:
        """Return the transformer blocks, bottom first."""
        return find_blocks(self.backbone, int(self.config.num_hidden_layers))


def _config(backbone: nn.Module) -> Any:
    return backbone.config


def find_blocks(backbone: nn.Module, layers: int) -> list[nn.Module]:
    """Find the list of *layers* modules of one class, whatever the architecture calls it.

    An architecture that shares or nests its blocks has no such list: then the whole backbone is the one block.
    """
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers and len({type(block) for block in module}) == 1:
            return list(module)
    return [backbone]


def pool(features: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Turn token features (rows, tokens, hidden) into (rows, hidden); padding has no part in it."""
    if pooling == "cls":
        return features[:, 0]
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(features.dtype)
        return (features * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    last = (mask.sum(1) - 1).clamp(min=0)
    return features.gather(1, last.view(-1, 1, 1).expand(-1, 1, features.shape[-1])).squeeze(1)


def grow(head: nn.Linear, rows: Tensor, centre: Tensor) -> nn.Linear:
    """Return the head with *rows* (new, hidden) put after its own, which keep their bytes and their places.

    New rows are scaled to the old rows' mean norm. Their biases let them answer to the mean feature, *centre*, as the
    average old row does, so that no new row begins ahead of or behind the old ones.
    """
    new = nn.Linear(head.in_features, head.out_features + len(rows))
    with torch.no_grad():
        norm = head.weight.norm(dim=1).mean() if head.out_features else torch.tensor(1.0)
        level = head(centre).mean() if head.out_features else torch.tensor(0.0)
        scaled = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6) * norm
        new.weight.copy_(torch.cat([head.weight, scaled]))
        new.bias.copy_(torch.cat([head.bias, level - scaled @ centre]))
    return new


def save_model(model: TwofoldModel, directory: Path) -> None:
    """Write the weights and the backbone's configuration."""
    tensors = {name: tensor.contiguous() for name, tensor in sorted(model.state_dict().items())}
    save_file(tensors, directory / TRAINING_WEIGHTS)
    written = json.loads(model.config.to_json_string(use_diff=False))
    for private in ("_name_or_path", "_attn_implementation_autoset", "transformers_version"):
        written.pop(private, None)
    (directory / BACKBONE_CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def load_model(checkpoint: Checkpoint) -> TwofoldModel:
    """Load a checkpoint's model in evaluation mode. Nothing is asked of any hub."""
    config = AutoConfig.from_pretrained(checkpoint.path / BACKBONE_CONFIG)
    backbone = AutoModel.from_config(config, attn_implementation=ATTENTION)  # type: ignore[no-untyped-call]
    model = TwofoldModel(backbone.to(torch.float32), checkpoint.manifest.labels, checkpoint.manifest.pooling)
    model.load_state_dict(load_file(checkpoint.path / TRAINING_WEIGHTS))
    return model.eval()


def snapshot(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copy the named tensors."""
    state = model.state_dict()
    return {name: state[name].clone() for name in names}


def restore(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put copied tensors back, bit for bit."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in saved.items():
            state[name].copy_(tensor)

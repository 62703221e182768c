"""One backbone, two heads, one forward pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from twofold_checkpoint.checkpoint import BACKBONE_CONFIG, TRAINING_WEIGHTS, Checkpoint
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS, Branch, HeadName

from twofold_trainer.modeling.blocks import can_divide, find_blocks, run_blocks

ATTENTION = "eager"
"""The only attention that every architecture supports and that exports to plain operators. At our lengths it is as fast as SDPA."""

Pooling = Literal["mean", "cls", "last"]


class Output(NamedTuple):
    """The result of a forward pass. Field names are the output names of the exported graph."""

    classifier_logits: Tensor
    """(rows, labels)."""
    ner_logits: Tensor
    """(rows, tokens, tags)."""
    pooled: Tensor
    """(rows, hidden)."""
    token_features: Tensor
    """(rows, tokens, hidden)."""


class Hidden(NamedTuple):
    """The input of each head, (rows, tokens, hidden). Both are the same tensor unless the model is forked."""

    classifier: Tensor
    ner: Tensor


class Entry(NamedTuple):
    """The hidden state (rows, tokens, hidden) that enters the block at *depth*, counted from the bottom."""

    depth: int
    hidden: Tensor


class TwofoldModel(nn.Module):
    """A backbone with a classifier and an NER head. Rows are padded on the right.

    A forked model has a *branch*: separate copies of the top blocks for one head. Both heads share the trunk below it;
    above the trunk, training one head cannot affect the other.
    """

    def __init__(
        self, backbone: nn.Module, labels: LabelSet, pooling: Pooling, *, branch: Branch | None = None
    ) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:
            # Drop BERT's pooler: this class pools itself, and the unused pooler would be saved untrained.
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
        self.branch: nn.ModuleList | None = None
        self.branch_head: HeadName | None = None
        if branch is not None:
            self.fork(branch.head, branch.blocks)

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return _config(self.backbone)

    @property
    def layers(self) -> int:
        """The number of blocks in the backbone's configuration."""
        return int(self.config.num_hidden_layers)

    @property
    def can_fork(self) -> bool:
        """Whether the backbone can be divided into a trunk and top blocks."""
        return can_divide(self.backbone, self.layers)

    @property
    def fork_point(self) -> int:
        """The number of blocks, from the bottom, that both heads share."""
        return len(self.blocks()) - (0 if self.branch is None else len(self.branch))

    @property
    def division(self) -> Branch | None:
        """The fork as the manifest stores it; None without a fork."""
        if self.branch is None or self.branch_head is None:
            return None
        return Branch(head=self.branch_head, blocks=len(self.branch))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """Run both heads on (rows, tokens) of ids and their mask."""
        hidden = self.hidden(input_ids, attention_mask)
        pooled = pool(hidden.classifier, attention_mask, self.pooling)
        return Output(self.classifier(pooled), self.ner(hidden.ner), pooled, hidden.ner)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        heads: Sequence[HeadName] = HEADS,
        entry: Entry | None = None,
    ) -> Hidden:
        """Run the backbone for *heads*. The result for other heads is undefined.

        With *entry*, only the blocks from its depth on are run.
        """

        def run(blocks: Sequence[nn.Module], own: Tensor | None, keep: nn.Module | None = None) -> Any:
            return run_blocks(
                self.backbone, blocks, input_ids, attention_mask, layers=self.layers, entry=own, keep_input_of=keep
            )

        depth, given = (0, None) if entry is None else entry
        if self.branch is None and entry is None:
            shared = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            # Tell the exporter that rows and tokens match the input, which the shape arithmetic of GPT-Neo hides.
            shared = shared.view(*input_ids.shape, -1)
            return Hidden(shared, shared)
        if self.branch is None:
            shared = run(self.blocks()[depth:], given)[0].view(*input_ids.shape, -1)
            return Hidden(shared, shared)
        if len(heads) == 1 or depth > self.fork_point:
            hidden = {head: run(self.path(head)[depth:], given)[0].view(*input_ids.shape, -1) for head in heads}
            only = next(iter(hidden.values()))
            return Hidden(hidden.get("classifier", only), hidden.get("ner", only))
        main, trunk = run(self.blocks()[depth:], given, self.blocks()[self.fork_point])
        side, _ = run(list(self.branch), trunk)
        main, side = main.view(*input_ids.shape, -1), side.view(*input_ids.shape, -1)
        return Hidden(side, main) if self.branch_head == "classifier" else Hidden(main, side)

    def head(self, name: HeadName) -> nn.Linear:
        """Return a head by name."""
        return self.classifier if name == "classifier" else self.ner

    def token_embeddings(self) -> list[nn.Parameter]:
        """Return the token embedding table."""
        table: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return list(table.parameters())

    def blocks(self) -> list[nn.Module]:
        """Return the backbone's own transformer blocks, bottom first."""
        return find_blocks(self.backbone, self.layers)

    def path(self, head: HeadName) -> list[nn.Module]:
        """Return the blocks between the text and a head, bottom first."""
        if self.branch is None or head != self.branch_head:
            return self.blocks()
        return [*self.blocks()[: self.fork_point], *self.branch]

    def fork(self, head: HeadName, blocks: int) -> None:
        """Copy the top *blocks* blocks for a head, in place. Outputs do not change until the copies train."""
        assert self.branch is None, "The model is already forked. This is a bug."
        assert 0 < blocks <= len(self.blocks()), f"{blocks} blocks cannot be copied. This is a bug."
        self.branch = nn.ModuleList(copy.deepcopy(block) for block in self.blocks()[-blocks:])
        self.branch_head = head


def _config(backbone: nn.Module) -> Any:
    return backbone.config


def pool(features: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool token features (rows, tokens, hidden) into (rows, hidden), ignoring padding."""
    if pooling == "cls":
        return features[:, 0]
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(features.dtype)
        return (features * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    last = (mask.sum(1) - 1).clamp(min=0)
    return features.gather(1, last.view(-1, 1, 1).expand(-1, 1, features.shape[-1])).squeeze(1)


def append_rows(head: nn.Linear, rows: Tensor, centre: Tensor) -> nn.Linear:
    """Return the head with *rows* (new, hidden) appended. Old rows keep their exact values and order.

    New rows are scaled to the old rows' mean norm. Their biases give them the average old logit at the mean feature,
    *centre*, so that new and old rows start equal.
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
    """Load a checkpoint's model in evaluation mode, without network access."""
    manifest = checkpoint.manifest
    config = AutoConfig.from_pretrained(checkpoint.path / BACKBONE_CONFIG)
    backbone = AutoModel.from_config(config, attn_implementation=ATTENTION)  # type: ignore[no-untyped-call]
    model = TwofoldModel(backbone.to(torch.float32), manifest.labels, manifest.pooling, branch=manifest.branch)
    model.load_state_dict(load_file(checkpoint.path / TRAINING_WEIGHTS))
    return model.eval()


def snapshot(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copy the named tensors."""
    state = model.state_dict()
    return {name: state[name].clone() for name in names}


def restore(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Restore copied tensors exactly."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in saved.items():
            state[name].copy_(tensor)

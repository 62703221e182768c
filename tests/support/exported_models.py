"""A small model of any architecture, with a checkpoint's graph and weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from support import tiny_models
from twofold_checkpoint.checkpoint import TRAINING_WEIGHTS
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.labels import LabelSet
from twofold_trainer.export.onnx_export import export
from twofold_trainer.modeling.backbone import Backbone, load_backbone
from twofold_trainer.modeling.model import TwofoldModel, save_model

LABELS = LabelSet(labels=("a", "b", "c"), entity_types=("x", "y"))


def make_exported(architecture: str, directory: Path) -> Path:
    """Save a backbone and a base with a model over it, all of whose parameters differ. Takes seconds."""
    backbone = tiny_models.make_backbone(architecture, directory / "backbone")
    torch.manual_seed(1)
    model = _model(backbone)
    move(model)
    (directory / "base").mkdir()
    save_base(model, backbone, directory / "base")
    return directory


def save_base(model: TwofoldModel, backbone: Backbone, directory: Path) -> None:
    """Export the model and save its weights."""
    export(model, directory, max_tokens=backbone.settings.max_tokens)
    save_model(model, directory)


def move(module: torch.nn.Module) -> None:
    """Change every parameter, as training does."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def _model(backbone: Backbone) -> TwofoldModel:
    return TwofoldModel(backbone.module, LABELS, backbone.pooling).eval()


class Exported:
    """A copy of a base that a test may change, and a directory for a candidate."""

    def __init__(self, made: Path, directory: Path) -> None:
        self.backbone = load_backbone(str(made / "backbone"))
        self.encoder = Encoder(self.backbone.tokenizer, self.backbone.settings)
        self.base, self.candidate = directory / "base", directory / "candidate"
        shutil.copytree(made / "base", self.base)
        self.candidate.mkdir()
        self.model = _model(self.backbone)
        self.model.load_state_dict(load_file(self.base / TRAINING_WEIGHTS))
        torch.manual_seed(2)  # For what a test moves.

"""The graph that the peers serve: the model as PyTorch exports it, which computes padding as it does tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_trainer.export.onnx_export import export
from twofold_trainer.modeling.model import load_model


def export_plain(checkpoint: Checkpoint, work: Path) -> Path:
    """Copy a checkpoint, once, with its graph as it was before it was packed; returns the copy's directory."""
    directory = work / f"plain-{checkpoint.id}"
    if not directory.exists():
        half = work / "plain.new"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(checkpoint.path, half)
        export(load_model(checkpoint), half, max_tokens=checkpoint.manifest.encoder.max_tokens, packed=False)
        half.rename(directory)
    return directory

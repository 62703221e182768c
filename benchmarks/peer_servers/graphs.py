"""The graph that the peers serve: the model as exported by PyTorch, which computes padding like tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_trainer.export.onnx_export import export
from twofold_trainer.modeling.model import load_model


def export_plain(checkpoint: Checkpoint, work: Path) -> Path:
    """Copy a checkpoint once, with its graph from before padding was removed, and return the copy's directory."""
    directory = work / f"plain-{checkpoint.id}"
    if not directory.exists():
        partial = work / "plain.new"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint.path, partial)
        export(load_model(checkpoint), partial, max_tokens=checkpoint.manifest.encoder.max_tokens, packed=False)
        partial.rename(directory)
    return directory

"""The life of a server in a process that cannot import torch or transformers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import tiny_checkpoints
from twofold import Client
from twofold_server.testing import serving

pytestmark = pytest.mark.slow

SERVE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "safetensors", "onnx", "twofold_trainer"}:
            raise ImportError(f"{name} is out of bounds")

sys.meta_path.insert(0, Refuse())
from twofold_server.__main__ import main
main()
"""


def test_it_starts_answers_swaps_and_stops(tmp_path: Path) -> None:
    """Without torch and transformers, the server predicts, embeds, swaps to another checkpoint, and exits with 0 on SIGTERM."""
    store = tiny_checkpoints.make_store(tmp_path / "store", "a", "b")

    with serving(store.root, command=[sys.executable, "-c", SERVE]) as server, Client(server.target) as client:
        before = client.predict("play jazz in paris")
        features = client.embed("play jazz in paris")
        promotion = client.promote("b")
        after = client.predict("play jazz in paris")

    assert before.label.startswith("a_")
    assert len(features.pooled) > 0
    assert promotion.replaced_id == before.checkpoint_id
    assert after.label.startswith("b_")

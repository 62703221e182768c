"""The texts that are sent: test sets of short commands and of sentences from abstracts."""

from __future__ import annotations

import json
import random
from pathlib import Path

SETS = ("hwu64", "ncbi_disease")


def read_texts(root: Path, names: tuple[str, ...] = SETS, *, seed: int = 0) -> list[str]:
    """Return the shuffled test texts of some data sets."""
    texts = []
    for name in names:
        with (root / name / "test.jsonl").open(encoding="utf-8") as lines:
            texts += [text for line in lines if (text := json.loads(line)["text"]).strip()]
    random.Random(seed).shuffle(texts)
    return texts

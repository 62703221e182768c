"""The model as a plain function: texts in, decoded answers out.

Every peer serves this, with the model's graph as it is exported and the project's tokenizer and decoder. A batch is padded as
a whole, as the servers' guides have it; what Twofold saves of padding is part of what is compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime as ort
from twofold_checkpoint.checkpoint import GRAPH, Checkpoint
from twofold_checkpoint.decoding import decode, merge_tokens, merge_windows
from twofold_checkpoint.encoding import pad

Answer = Callable[[Sequence[str]], list[Any]]


def load(checkpoint: str, *, threads: int, spinning: bool) -> Answer:
    """Load a checkpoint and return the function that answers from it.

    Answers are plain dicts: *labels* with label and score, *entities* with start, end, type and score.
    """
    opened = Checkpoint.open(Path(checkpoint))
    encoder, labels = opened.encoder(), opened.manifest.labels
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = ort.InferenceSession(str(opened.path / GRAPH), options, providers=["CPUExecutionProvider"])

    def answer(texts: Sequence[str]) -> list[Any]:
        encodings = encoder.encode(texts)
        ids, mask = pad([window for one in encodings for window in one.windows], encoder.settings.pad_id)
        outputs = session.run(["classifier_logits", "ner_logits"], {"input_ids": ids, "attention_mask": mask})
        rows = iter(zip(*outputs, strict=True))
        grouped = [list(itertools.islice(rows, len(encoding.windows))) for encoding in encodings]
        found = decode(
            encodings,
            [merge_windows(one, [row[0] for row in own]) for one, own in zip(encodings, grouped, strict=True)],
            [merge_tokens(one, [row[1] for row in own]) for one, own in zip(encodings, grouped, strict=True)],
            labels,
        )
        return [msgspec.to_builtins(one) for one in found]

    for size in (1, 8, 32):
        answer(["where is my parcel, please"] * size)
    return answer

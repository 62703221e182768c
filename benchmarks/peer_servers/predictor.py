"""The model as a plain function from texts to decoded answers.

Every peer serves this function, with Twofold's tokenizer and decoder. A batch is padded to its longest text, as in the guides
of these servers; the padding that Twofold avoids is part of the comparison.
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

from benchmarks.peer_servers.settings import Settings

Predictor = Callable[[Sequence[str]], list[Any]]


def load_predictor(settings: Settings) -> Predictor:
    """Load the checkpoint of the settings and return a function that predicts texts.

    Answers are plain dicts: *labels* with label and score, *entities* with start, end, type and score.
    """
    opened = Checkpoint.open(Path(settings.checkpoint))
    encoder, labels = opened.encoder(), opened.manifest.labels
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    session = ort.InferenceSession(str(opened.path / GRAPH), options, providers=["CPUExecutionProvider"])

    def predict(texts: Sequence[str]) -> list[Any]:
        encodings = encoder.encode(texts)
        ids, mask = pad([window for encoding in encodings for window in encoding.windows], encoder.settings.pad_id)
        outputs = session.run(["classifier_logits", "ner_logits"], {"input_ids": ids, "attention_mask": mask})
        rows = iter(zip(*outputs, strict=True))
        pairs = [(encoding, list(itertools.islice(rows, len(encoding.windows)))) for encoding in encodings]
        predictions = decode(
            encodings,
            [merge_windows(encoding, [row[0] for row in group]) for encoding, group in pairs],
            [merge_tokens(encoding, [row[1] for row in group]) for encoding, group in pairs],
            labels,
        )
        return list(map(msgspec.to_builtins, predictions))

    for size in (1, 8, 32):
        predict(["where is my parcel, please"] * size)
    return predict

"""Export the trained model as an ONNX graph, and verify that both give the same results."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from twofold_checkpoint import decoding
from twofold_checkpoint.checkpoint import GRAPH, GRAPH_WEIGHTS, SLOW_FUSIONS
from twofold_checkpoint.decoding import Prediction, merge_tokens, merge_windows
from twofold_checkpoint.encoding import Encoder, Encoding, pad
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.protocol.events import ParityMeasured

from twofold_trainer.errors import ParityError
from twofold_trainer.export.unpadding import remove_padding
from twofold_trainer.modeling.model import Output, TwofoldModel

PARITY_TOLERANCE = 1e-4
"""Largest logit difference between the exported graph and the trained model."""

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = Output._fields
MAX_ROWS = 65_536

Floats = NDArray[np.float32]


def export(model: TwofoldModel, directory: Path, *, max_tokens: int, packed: bool = True) -> None:
    """Write model.onnx and model.onnx.data: fp32, any number of rows, any length up to *max_tokens*.

    Without *packed*, the graph also computes padding tokens.
    """
    model.eval()
    # Example sizes must not be 0 or 1, which the exporter treats as constants.
    rows, length = 3, min(7, max_tokens)
    ids = torch.zeros((rows, length), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    axes = {
        0: torch.export.Dim("batch", min=1, max=MAX_ROWS),
        1: torch.export.Dim("length", min=1, max=max_tokens),
    }
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model,
            (),
            kwargs={"input_ids": ids, "attention_mask": mask},
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            dynamo=True,
            verbose=False,
        )
        assert program is not None, "the exporter returned nothing. This is a bug."
        program.save(directory / GRAPH, external_data=True)
    proto = onnx.load(directory / GRAPH, load_external_data=False)
    _check_axes(proto.graph)
    if packed:
        remove_padding(proto.graph)
        onnx.save(proto, directory / GRAPH)
    assert (directory / GRAPH_WEIGHTS).is_file(), f"the exporter wrote no {GRAPH_WEIGHTS}. This is a bug."


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress irrelevant warnings of the exporter: missing torchvision, a deprecated class, shared axes."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r".*The axis name: .* will not be used", category=UserWarning)
            yield
    finally:
        exporter.setLevel(level)


def _check_axes(graph: Any) -> None:
    """Raise ParityError if the graph has a constant number of rows or tokens."""
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape.dim
        free = 2 if value.name in {*INPUTS, "ner_logits", "token_features"} else 1
        if any(not axis.dim_param for axis in shape[:free]):
            raise ParityError(f"the exported graph has a fixed axis in {value.name}; the backbone cannot be exported")


class Graph:
    """An exported graph on the CPU, with the same fusions as in serving."""

    def __init__(self, directory: Path, *, threads: int, name: str = GRAPH) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(directory / name), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*SLOW_FUSIONS]
        )

    def run(self, encodings: Sequence[Encoding], pad_id: int) -> tuple[list[Floats], NDArray[np.int64]]:
        """Run all windows of the texts as one batch; returns the outputs in order, and the mask."""
        ids, mask = pad([window for encoding in encodings for window in encoding.windows], pad_id)
        return self._session.run(list(OUTPUTS), {"input_ids": ids, "attention_mask": mask}), mask

    def predict(self, encodings: Sequence[Encoding], labels: LabelSet, pad_id: int) -> list[Prediction]:
        """Return the best label and all entities of each text."""
        outputs, _ = self.run(encodings, pad_id)
        return decode_logits(encodings, outputs[0], outputs[1], labels)


def decode_logits(
    encodings: Sequence[Encoding], classifier_logits: Floats, ner_logits: Floats, labels: LabelSet
) -> list[Prediction]:
    """Decode the logits of all windows into predictions."""
    label_logits, tag_logits, row = [], [], 0
    for encoding in encodings:
        rows = slice(row, row + len(encoding.windows))
        row = rows.stop
        label_logits.append(merge_windows(encoding, list(classifier_logits[rows])))
        tag_logits.append(merge_tokens(encoding, list(ner_logits[rows])))
    return decoding.decode(encodings, label_logits, tag_logits, labels)


def parity_batches(texts: Sequence[str], encoder: Encoder, *, rows: int = 8) -> list[list[Encoding]]:
    """Choose batches of real texts that cover every shape: single texts, mixed lengths, full windows with a short text."""
    by_length = sorted(encoder.encode(list(texts)), key=lambda encoding: len(encoding.ids))
    step = max(1, len(by_length) // rows)
    full = encoder.encode([" ".join(texts)[:20_000]])[0]
    # Repeat the texts until a window is full.
    while len(full.windows) == 1 and len(full.text) < 20_000:
        full = encoder.encode([f"{full.text} {full.text}"])[0]
    mixed = by_length[::step]
    return [[by_length[0]], [by_length[-1]], mixed, mixed[::-1][: max(2, rows // 2)], [by_length[0], full]]


def measure_parity(
    model: TwofoldModel, graph: Graph, batches: Sequence[Sequence[Encoding]], labels: LabelSet, pad_id: int
) -> ParityMeasured:
    """Compare the graph with the model on real tokens. Raises ParityError if a logit, a label or a span differs."""
    model.eval()
    worst, texts = 0.0, 0
    for encodings in batches:
        outputs, mask = graph.run(encodings, pad_id)
        ids, _ = pad([window for encoding in encodings for window in encoding.windows], pad_id)
        with torch.no_grad():
            expected = [
                expected_output.numpy() for expected_output in model(torch.from_numpy(ids), torch.from_numpy(mask))
            ]
        if any(array.shape != output.shape for array, output in zip(expected, outputs, strict=True)):
            raise ParityError("the shapes of the exported graph's logits differ from those of the trained model")
        real = mask.astype(bool)
        errors = [
            float(np.abs(expected[0] - outputs[0]).max(initial=0.0)),
            float(np.abs(expected[1] - outputs[1])[real].max(initial=0.0)),
        ]
        # The comparison fails for NaN.
        if not all(error <= PARITY_TOLERANCE for error in errors):
            raise ParityError(
                f"the exported graph differs from the trained model by {max(errors):.2e} in a logit "
                f"at shape {mask.shape}; at most {PARITY_TOLERANCE:.0e} is allowed"
            )
        for encoding, wanted, got in zip(
            encodings,
            decode_logits(encodings, expected[0], expected[1], labels),
            decode_logits(encodings, outputs[0], outputs[1], labels),
            strict=True,
        ):
            if _meaning(wanted) != _meaning(got):
                raise ParityError(
                    f"the exported graph answers {encoding.text[:80]!r} differently from the trained model"
                )
        worst, texts = max(worst, *errors), texts + len(encodings)
    return ParityMeasured(max_error=worst, texts=texts)


def _meaning(prediction: Prediction) -> tuple[list[str], list[tuple[int, int, str]]]:
    return [label.label for label in prediction.labels], [
        (entity.start, entity.end, entity.type) for entity in prediction.entities
    ]

"""A loaded checkpoint that runs forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from twofold_checkpoint import decoding
from twofold_checkpoint.checkpoint import TOKENIZER, Checkpoint, graph_files
from twofold_checkpoint.decoding import Prediction, merge_tokens, merge_windows
from twofold_checkpoint.encoding import Encoder, Encoding, Ids, Window, pad
from twofold_checkpoint.golden import ISOLATION_TOLERANCE, REDUCED_TOLERANCE, TOLERANCE, compare_golden, read_golden
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import Precision

from twofold_server.errors import SwapError
from twofold_server.inference.bucketing import split_into_passes
from twofold_server.inference.session import open_session, run_bound

Floats = NDArray[np.float32]
Output = Literal["classifier_logits", "ner_logits", "pooled", "token_features"]
Rows = list[tuple[Floats, ...]]
"""Outputs of a pass for one text: for each window, one row of every output."""
HEAD_OUTPUTS: tuple[Output, ...] = ("classifier_logits", "ner_logits")
FEATURE_OUTPUTS: tuple[Output, ...] = ("pooled", "token_features")

_INPUTS = {"input_ids", "attention_mask"}
_PASS_OVERHEAD_TOKENS = {"cpu": 16, "cuda": 2048}
"""Fixed cost of a pass, in tokens. On two cores, MiniLM takes 3 ms per pass and 0.16 ms per token. The value for GPUs was not
measured: a few hundred tokens do not saturate one."""
_WARM_UP = {"cpu": ((2, 8),), "cuda": ((1, None), (1, 16), (8, 16), (32, 16))}
"""Shapes (windows, tokens) of the warm-up passes; None: the maximum window length."""


class EngineState(StrEnum):
    """Life cycle of an engine: loading, ready, draining, closed. It can fail in any state."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"


class Engine:
    """The session, encoder and labels of one checkpoint.

    Thread-safe; passes may run concurrently. The encoder and the labels remain usable after close(). The new engine shares
    the encoder of *share_encoder_with* if both encode every text alike.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        threads: int = 1,
        gpu_memory_mib: int = 0,
        precision: Precision = "fp32",
        share_encoder_with: Engine | None = None,
    ) -> None:
        self.state = EngineState.LOADING
        self.checkpoint = checkpoint
        self.precision = precision
        self.labels = checkpoint.manifest.labels
        settings = checkpoint.manifest.encoder
        tokenizer = next(file.sha256 for file in checkpoint.manifest.files if file.name == TOKENIZER)
        self.encoding_key = (tokenizer, settings.max_tokens, settings.overlap, settings.pad_id)
        """Engines with equal keys encode every text alike."""
        # Loading a tokenizer holds the GIL for about 15 ms and blocks every request.
        self.encoder: Encoder = (
            share_encoder_with.encoder
            if share_encoder_with and share_encoder_with.encoding_key == self.encoding_key
            else checkpoint.encoder()
        )
        self.pass_overhead_tokens = _PASS_OVERHEAD_TOKENS[device]
        self._device = device
        self._session: ort.InferenceSession | None = open_session(
            checkpoint.path / graph_files(precision)[0], device=device, threads=threads, gpu_memory_mib=gpu_memory_mib
        )

    def __repr__(self) -> str:
        return f"<Engine {self.id} {self.precision} {self.state}>"

    @property
    def id(self) -> str:
        """The id of the checkpoint."""
        return self.checkpoint.id

    def run(self, input_ids: Ids, attention_mask: Ids, outputs: Sequence[Output]) -> list[Floats]:
        """Run one forward pass over inputs of shape (windows, tokens)."""
        if self._session is None:
            raise RuntimeError(f"{self!r} cannot run because it is closed. This is a bug.")
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._device != "cpu":
            return run_bound(self._session, feeds, outputs, self._device)
        arrays: list[Floats] = self._session.run(list(outputs), feeds)
        return arrays

    def run_windows(self, windows: Sequence[Window], outputs: Sequence[Output], max_tokens: int) -> Rows:
        """Run windows in forward passes of at most *max_tokens* padded tokens. Return the output rows of each window.

        The entry of a window is empty if any of its values is not finite.
        """
        rows: Rows = [()] * len(windows)
        for indices in split_into_passes(
            [(1, len(window.ids)) for window in windows], max_tokens, self.pass_overhead_tokens
        ):
            ids, mask = pad([windows[index] for index in indices], self.encoder.settings.pad_id)
            arrays = self.run(ids, mask, outputs)
            all_finite = _are_finite(arrays)  # One check per pass; one per row would take ten times as long.
            for row, index in enumerate(indices):
                values = tuple(output[row] for output in arrays)
                rows[index] = values if all_finite or _are_finite(values) else ()
        return rows

    def warm_up(self) -> None:
        """Run warm-up passes, so that no request pays for the first one, and check the outputs.

        On a CPU, the first pass is as fast as later ones and no memory is retained between passes, so one short pass is
        enough to show that the graph runs. On a GPU, each shape loads kernels and grows the arena. Raises SwapError if an
        output has the wrong shape or is not finite.
        """
        widths = self._widths()
        for rows, tokens in _WARM_UP[self._device]:
            length = min(tokens or self.encoder.settings.max_tokens, self.encoder.settings.max_tokens)
            ids = np.full((rows, length), self.encoder.settings.pad_id, np.int64)
            arrays = self.run(ids, np.ones_like(ids), tuple(widths))
            for (name, width), output in zip(widths.items(), arrays, strict=True):
                if output.shape[-1] != width or output.shape[0] != rows:
                    raise SwapError(f"output {name} has width {output.shape[-1]}; the manifest says {width}")
                if not _are_finite([output]):
                    raise SwapError(f"output {name} has values that are not finite")

    def check_golden(self) -> None:
        """Compare the answers to the golden texts with the published ones.

        Each text runs alone. In reduced precision all texts also run in one batch, because whether a row is independent of
        its batch depends on the kernels of this CPU, which may differ from those of the trainer's. Raises SwapError with the
        number of the first text whose answer differs.
        """
        file = graph_files(self.precision)[1]
        golden = read_golden(self.checkpoint.path / file)
        tolerance = TOLERANCE if self.precision == "fp32" else REDUCED_TOLERANCE
        isolated_answers = [self._answer([answer.text])[0] for answer in golden]
        for number, (expected, actual) in enumerate(zip(golden, isolated_answers, strict=True), 1):
            if (difference := compare_golden(expected.prediction, actual, tolerance)) is not None:
                where = f"{difference}, for text {number} of {file}"  # Not the text itself: this message is logged.
                raise SwapError(f"its answers differ from the golden answers: {where}")
        if self.precision == "fp32":
            return
        batched_answers = self._answer([answer.text for answer in golden])
        for number, (isolated, batched) in enumerate(zip(isolated_answers, batched_answers, strict=True), 1):
            if (difference := compare_golden(isolated, batched, ISOLATION_TOLERANCE)) is not None:
                where = f"{difference}, for text {number} of {file}"
                raise SwapError(f"in {self.precision} the answer to a text depends on its batch: {where}")

    def _answer(self, texts: Sequence[str]) -> list[Prediction]:
        """Return the predictions for texts, from one pass."""
        encodings = self.encoder.encode(texts)
        windows = [window for encoding in encodings for window in encoding.windows]
        rows = iter(zip(*self.run(*pad(windows, self.encoder.settings.pad_id), HEAD_OUTPUTS), strict=True))
        return decode_rows(encodings, [[next(rows) for _ in encoding.windows] for encoding in encodings], self.labels)

    def check_signature(self) -> None:
        """Check the names of the graph's inputs, and the names and widths of its outputs. Raises SwapError."""
        assert self._session is not None, "A closed engine was checked. This is a bug."
        inputs = {node.name for node in self._session.get_inputs()}
        if inputs != _INPUTS:
            raise SwapError(f"the graph's inputs are {sorted(inputs)}; they must be {sorted(_INPUTS)}")
        output_widths = {output.name: output.shape[-1] for output in self._session.get_outputs()}
        for name, width in self._widths().items():
            if name not in output_widths:
                raise SwapError(f"the graph has no output {name}")
            if isinstance(output_widths[name], int) and output_widths[name] != width:
                raise SwapError(f"output {name} has width {output_widths[name]}; the manifest says {width}")

    def close(self, state: EngineState = EngineState.CLOSED) -> None:
        """Free the session and its memory. Slow: do not call it on the path of a request."""
        self._session = None
        self.state = state

    def _widths(self) -> dict[Output, int]:
        manifest = self.checkpoint.manifest
        return {
            "classifier_logits": len(manifest.labels.labels),
            "ner_logits": len(manifest.labels.tags),
            "pooled": manifest.hidden_size,
            "token_features": manifest.hidden_size,
        }


def _are_finite(outputs: Sequence[Floats]) -> bool:
    return all(bool(np.isfinite(output).all()) for output in outputs)


def decode_rows(
    encodings: Sequence[Encoding],
    rows: Sequence[Rows],
    labels: LabelSet,
    *,
    top: int = 1,
    entities: bool = True,
) -> list[Prediction]:
    """Decode rows of HEAD_OUTPUTS into predictions with *top* labels each; 0 skips the classification head."""
    windowed = zip(encodings, rows, strict=True)
    merged = [
        (
            merge_windows(encoding, [row[0] for row in windows]) if top else None,
            merge_tokens(encoding, [row[1] for row in windows]) if entities else None,
        )
        for encoding, windows in windowed
    ]
    return decoding.decode(
        encodings,
        [classes for classes, _ in merged if classes is not None] if top else None,
        [tags for _, tags in merged if tags is not None] if entities else None,
        labels,
        top=top,
    )

"""A loaded checkpoint that answers."""

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
from twofold_checkpoint.golden import REDUCED_TOLERANCE, TOLERANCE, compare_golden, read_golden
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import Precision

from twofold_server.errors import SwapError
from twofold_server.inference.bucketing import slices
from twofold_server.inference.session import open_session, run_bound

Floats = NDArray[np.float32]
Output = Literal["classifier_logits", "ner_logits", "pooled", "token_features"]
Rows = list[tuple[Floats, ...]]
"""What a pass computed for a text: for each of its windows one row of every output."""
HEAD_OUTPUTS: tuple[Output, ...] = ("classifier_logits", "ner_logits")
FEATURE_OUTPUTS: tuple[Output, ...] = ("pooled", "token_features")

ISOLATION_TOLERANCE = 1e-5
"""Largest difference of a score between a text alone and the same text among others."""
_INPUTS = {"input_ids", "attention_mask"}
_PASS_TOKENS = {"cpu": 16, "cuda": 2048}
"""What a pass costs beside its tokens, counted in tokens. On two cores MiniLM takes 3 ms and 0.16 ms for each token; a
GPU is far from busy with a few hundred tokens, and was not measured."""
_WARM_UP = {"cpu": ((2, 8),), "cuda": ((1, None), (1, 16), (8, 16), (32, 16))}
"""Shapes (windows, tokens) that are run before an engine answers; None is the longest window."""


class EngineState(StrEnum):
    """An engine's life is a line: loading, ready, draining, closed; any may end as failed."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"


class Engine:
    """Hold a checkpoint's session, encoder and labels, which belong together.

    An engine answers on any thread, and several at a time. Its encoder and labels outlive close().
    *beside* is an engine that answers meanwhile: its encoder is shared where both have the same.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        threads: int = 1,
        gpu_memory_mib: int = 0,
        precision: Precision = "fp32",
        beside: Engine | None = None,
    ) -> None:
        self.state = EngineState.LOADING
        self.checkpoint = checkpoint
        self.precision = precision
        self.labels = checkpoint.manifest.labels
        settings = checkpoint.manifest.encoder
        tokenizer = next(file.sha256 for file in checkpoint.manifest.files if file.name == TOKENIZER)
        self.encoding_key = (tokenizer, settings.max_tokens, settings.overlap, settings.pad_id)
        """Two engines with equal keys encode every text alike."""
        # To load a tokenizer holds the interpreter for some 15 ms, in which no request gets on.
        self.encoder: Encoder = (
            beside.encoder if beside and beside.encoding_key == self.encoding_key else checkpoint.encoder()
        )
        self.pass_tokens = _PASS_TOKENS[device]
        self._device = device
        self._session: ort.InferenceSession | None = open_session(
            checkpoint.path / graph_files(precision)[0], device=device, threads=threads, gpu_memory_mib=gpu_memory_mib
        )

    def __repr__(self) -> str:
        return f"<Engine {self.id} {self.precision} {self.state}>"

    @property
    def id(self) -> str:
        """The checkpoint's id."""
        return self.checkpoint.id

    def run(self, input_ids: Ids, attention_mask: Ids, outputs: Sequence[Output]) -> list[Floats]:
        """Run one forward pass over (windows, tokens)."""
        if self._session is None:
            raise RuntimeError(f"{self!r} was asked to run. This is a bug.")
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._device != "cpu":
            return run_bound(self._session, feeds, outputs, self._device)
        arrays: list[Floats] = self._session.run(list(outputs), feeds)
        return arrays

    def run_windows(self, windows: Sequence[Window], outputs: Sequence[Output], max_tokens: int) -> Rows:
        """Run windows in forward passes of at most *max_tokens* padded tokens; returns each window's output rows.

        They are no rows where a number of them is not finite.
        """
        rows: Rows = [()] * len(windows)
        for chosen in slices([(1, len(window.ids)) for window in windows], max_tokens, self.pass_tokens):
            ids, mask = pad([windows[index] for index in chosen], self.encoder.settings.pad_id)
            arrays = self.run(ids, mask, outputs)
            all_finite = _are_finite(arrays)  # Of a pass at once: of each row it would take ten times as long.
            for row, index in enumerate(chosen):
                own = tuple(output[row] for output in arrays)
                rows[index] = own if all_finite or _are_finite(own) else ()
        return rows

    def warm_up(self) -> None:
        """Run what takes longer the first time, so that no request pays for it, and look at what comes out.

        On a CPU no shape takes longer the first time than later, and no memory is kept from one pass to the next; a brief
        pass shows that the graph runs. On a GPU kernels are loaded, and its arena grows, with the shapes. Raises SwapError.
        """
        widths = self._widths()
        for rows, tokens in _WARM_UP[self._device]:
            length = min(tokens or self.encoder.settings.max_tokens, self.encoder.settings.max_tokens)
            ids = np.full((rows, length), self.encoder.settings.pad_id, np.int64)
            arrays = self.run(ids, np.ones_like(ids), tuple(widths))
            for (name, width), output in zip(widths.items(), arrays, strict=True):
                if output.shape[-1] != width or output.shape[0] != rows:
                    raise SwapError(f"output {name} is {output.shape[-1]} wide; the manifest says {width}")
                if not _are_finite([output]):
                    raise SwapError(f"output {name} has values that are not finite")

    def check_golden(self) -> None:
        """Give the golden answers again. Raises SwapError that numbers the first text answered differently.

        Each text is asked alone. In reduced precision all of them are then asked together, too: whether a row's answer
        is its own is for this CPU's kernels to show, and a trainer's CPU may have others.
        """
        file = graph_files(self.precision)[1]
        golden = read_golden(self.checkpoint.path / file)
        tolerance = TOLERANCE if self.precision == "fp32" else REDUCED_TOLERANCE
        alone = [self._answer([answer.text])[0] for answer in golden]
        for number, (expected, actual) in enumerate(zip(golden, alone, strict=True), 1):
            if (wrong := compare_golden(expected.prediction, actual, tolerance)) is not None:
                where = f"{wrong}, for text {number} of {file}"  # Not the text, for this is logged.
                raise SwapError(f"it does not answer as it did when it was published: {where}")
        if self.precision == "fp32":
            return
        together = self._answer([answer.text for answer in golden])
        for number, (own, among) in enumerate(zip(alone, together, strict=True), 1):
            if (wrong := compare_golden(own, among, ISOLATION_TOLERANCE)) is not None:
                where = f"{wrong}, for text {number} of {file}"
                raise SwapError(f"in {self.precision} a text's neighbours change its answer: {where}")

    def _answer(self, texts: Sequence[str]) -> list[Prediction]:
        """Answer texts in one pass."""
        encodings = self.encoder.encode(texts)
        windows = [window for encoding in encodings for window in encoding.windows]
        rows = iter(zip(*self.run(*pad(windows, self.encoder.settings.pad_id), HEAD_OUTPUTS), strict=True))
        return decode(encodings, [[next(rows) for _ in encoding.windows] for encoding in encodings], self.labels)

    def check_signature(self) -> None:
        """Compare the graph's inputs and outputs with what is fed and read. Raises SwapError."""
        assert self._session is not None, "A closed engine was checked. This is a bug."
        inputs = {node.name for node in self._session.get_inputs()}
        if inputs != _INPUTS:
            raise SwapError(f"the graph's inputs are {sorted(inputs)}; they must be {sorted(_INPUTS)}")
        widths_of_graph = {output.name: output.shape[-1] for output in self._session.get_outputs()}
        for name, width in self._widths().items():
            if name not in widths_of_graph:
                raise SwapError(f"the graph has no output {name}")
            if isinstance(widths_of_graph[name], int) and widths_of_graph[name] != width:
                raise SwapError(f"output {name} is {widths_of_graph[name]} wide; the manifest says {width}")

    def close(self, state: EngineState = EngineState.CLOSED) -> None:
        """Free the session, and with it its memory. Not on a request's path: it takes a while."""
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


def decode(
    encodings: Sequence[Encoding],
    rows: Sequence[Rows],
    labels: LabelSet,
    *,
    top: int = 1,
    entities: bool = True,
) -> list[Prediction]:
    """Decode the rows of HEAD_OUTPUTS of texts. *top* labels come back; with zero the label is not decoded."""
    windows_of_texts = zip(encodings, rows, strict=True)
    merged = [
        (
            merge_windows(encoding, [row[0] for row in own]) if top else None,
            merge_tokens(encoding, [row[1] for row in own]) if entities else None,
        )
        for encoding, own in windows_of_texts
    ]
    return decoding.decode(
        encodings,
        [classes for classes, _ in merged if classes is not None] if top else None,
        [tags for _, tags in merged if tags is not None] if entities else None,
        labels,
        top=top,
    )

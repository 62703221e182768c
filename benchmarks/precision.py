"""Compare quantisation schemes with fp32 on this CPU: speed, accuracy, and batch invariance.

    python -m benchmarks.precision --sets DIRECTORY [--rounds 3] [--work DIRECTORY]

A checkpoint is trained once on part of HWU64. Its graph is quantised by every scheme; `model.int8` is Twofold's. All schemes
run in the server's engine in interleaved rounds over the test texts of HWU64 and NCBI; a speedup is the median of the
ratios within a round. Accuracy and F1 are those on HWU64's test set; `same_label` and `same_spans` are the percentages of
texts with the label or the spans of fp32. The isolation error is the largest difference of a probability between a text
alone and in a batch. The last line of output is a JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers import float16, optimizer
from twofold_checkpoint.checkpoint import GRAPH, GRAPH_WEIGHTS, Checkpoint
from twofold_checkpoint.encoding import pad
from twofold_checkpoint.examples import Example, read_examples
from twofold_checkpoint.store import Store
from twofold_server.inference.engine import HEAD_OUTPUTS, Engine
from twofold_server.inference.session import open_session
from twofold_trainer.export.onnx_export import Graph
from twofold_trainer.export.quantization import quantise_graph
from twofold_trainer.export.quantization_gate import QuantizationInputs, answer, head_score, measure_isolation
from twofold_trainer.stop import StopSignal

from benchmarks import report
from benchmarks.load.texts import SETS, read_texts
from benchmarks.processes import run_command

TRAINING_EXAMPLES = 3500
MAX_TOKENS = 2048
QUEUED = 64
"""Queued texts that are split into passes."""
TEXTS = 150


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Feed a few hundred training texts to the calibration one by one, without padding."""

    def __init__(self, checkpoint: Checkpoint, texts: Sequence[str]) -> None:
        encodings = sorted(checkpoint.encoder().encode(texts), key=lambda encoding: len(encoding.ids))
        self._feeds = iter([self._feed([encoding.windows[0]]) for encoding in encodings])

    @staticmethod
    def _feed(windows: Sequence[Any]) -> dict[str, Any]:
        ids, mask = pad(windows, 0)
        return {"input_ids": ids, "attention_mask": mask}

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed."""
        return next(self._feeds, None)


def make_graphs(checkpoint: Checkpoint, texts: Sequence[str], work: Path) -> Iterator[str]:
    """Write every scheme's graph into *work* and yield its name, the file name without suffix."""
    for name in (GRAPH, GRAPH_WEIGHTS):
        shutil.copyfile(checkpoint.path / name, work / name)
    source = str(work / GRAPH)
    yield "model"
    quantise_graph(work)
    yield "model.int8"
    products = {"op_types_to_quantize": ["MatMul"], "weight_type": QuantType.QInt8, "use_external_data_format": True}
    constant = {"MatMulConstBOnly": True}
    quantize_dynamic(source, work / "dynamic-per-tensor.onnx", extra_options=constant, **products)
    yield "dynamic-per-tensor"
    quantize_static(
        source, work / "static-qdq.onnx", _Calibration(checkpoint, texts[:256]), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, per_channel=True, extra_options=constant, **products,
    )  # fmt: skip
    yield "static-qdq"
    for bits, block in ((8, 32), (8, 128), (4, 32), (4, 128)):
        quantiser = MatMulNBitsQuantizer(
            onnx.load(source), bits=bits, block_size=block, is_symmetric=True, accuracy_level=4
        )
        quantiser.process()
        quantiser.model.save_model_to_file(
            str(work / f"nbits-{bits}-block-{block}.onnx"), use_external_data_format=True
        )
        yield f"nbits-{bits}-block-{block}"
    half = float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(half, work / "fp16.onnx", save_as_external_data=True, location="fp16.onnx.data")
    yield "fp16"
    fused = optimizer.optimize_model(source, model_type="bert", num_heads=12, hidden_size=384, opt_level=0)
    fused.save_model_to_file(str(work / "fp32-fused.onnx"), use_external_data_format=True)
    yield "fp32-fused"


@dataclass(frozen=True, slots=True)
class Scheme:
    """A graph in the server's engine."""

    name: str
    engine: Engine


def open_scheme(checkpoint: Checkpoint, work: Path, name: str, threads: int) -> Scheme:
    """Load a graph instead of the checkpoint's own."""
    engine = Engine(checkpoint, threads=threads)
    engine._session = open_session(work / f"{name}.onnx", device="cpu", threads=threads)  # noqa: SLF001 -- no checkpoint has these graphs.
    return Scheme(name, engine)


def time_texts(engine: Engine, groups: Sequence[Sequence[Any]]) -> tuple[float, float]:
    """Run groups of windows, split into passes by length; return seconds and CPU seconds."""
    started_at, cpu_before = time.perf_counter(), time.process_time()
    for windows in groups:
        engine.run_windows(windows, HEAD_OUTPUTS, MAX_TOKENS)
    return time.perf_counter() - started_at, time.process_time() - cpu_before


def measure_speed(schemes: Sequence[Scheme], texts: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Run the schemes in interleaved rounds; return each one's speedup over the first, by time and by CPU time."""
    encodings = schemes[0].engine.encoder.encode(list(texts))
    windows = [window for encoding in encodings for window in encoding.windows]
    groups = [windows[first : first + QUEUED] for first in range(0, len(windows), QUEUED)]
    times: dict[str, list[tuple[float, float]]] = {scheme.name: [] for scheme in schemes}
    for scheme in schemes:
        time_texts(scheme.engine, groups[:1])
    for _ in range(rounds):
        for scheme in schemes:
            times[scheme.name].append(time_texts(scheme.engine, groups))
    baseline = times[schemes[0].name]
    return {
        name: {
            "speedup": round(
                statistics.median(old[0] / new[0] for old, new in zip(baseline, measured, strict=True)), 3
            ),
            "cpu_speedup": round(
                statistics.median(old[1] / new[1] for old, new in zip(baseline, measured, strict=True)), 3
            ),
            "texts_per_second": round(len(texts) / statistics.median(seconds for seconds, _ in measured), 1),
        }
        for name, measured in times.items()
    }


def measure_answers(
    checkpoint: Checkpoint, work: Path, names: Sequence[str], examples: Sequence[Example], threads: int
) -> dict[str, dict[str, float]]:
    """Compare each scheme's answers with those of the first and with the gold answers."""
    inputs = QuantizationInputs(checkpoint.manifest.labels, checkpoint.encoder(), examples, 0, threads)
    texts = [example.text for example in examples]
    results: dict[str, dict[str, float]] = {}
    base: list[Any] = []
    base_logits: list[Any] = []
    for name in names:
        graph = Graph(work, threads=threads, name=f"{name}.onnx")
        answers = answer(graph, examples, inputs, StopSignal())
        logits = [graph.run([encoding], 0)[0][:2] for encoding in inputs.encoder.encode(texts[:200])]
        base, base_logits = base or answers, base_logits or logits
        labels = [old.labels[0].label == new.labels[0].label for old, new in zip(base, answers, strict=True)]
        spans = [
            [[(entity.start, entity.end, entity.type) for entity in prediction.entities] for prediction in pair]
            for pair in zip(base, answers, strict=True)
        ]
        scores = {head: head_score(examples, answers, head) for head in ("classifier", "ner")}
        results[name] = {
            "accuracy": round(100 * scores["classifier"].value, 2),
            "f1": round(100 * scores["ner"].value, 2),
            "same_label": round(100 * statistics.mean(labels), 2),
            "same_spans": round(100 * statistics.mean(old == new for old, new in spans), 2),
            "logit_difference": round(
                max(
                    float(np.abs(a - b).max())
                    for old, new in zip(base_logits, logits, strict=True)
                    for a, b in zip(old, new, strict=True)
                ),
                4,
            ),
            "isolation_error": float(f"{measure_isolation(graph, texts[:64], inputs.encoder):.1e}"),
        }
        print(name, results[name], file=sys.stderr, flush=True)
    return results


def train(sets: Path, work: Path) -> Checkpoint:
    """Train a checkpoint on the first examples of HWU64, once."""
    if not (work / "store" / "aliases.json").exists():
        with (sets / "hwu64" / "train.jsonl").open(encoding="utf-8") as lines:
            (work / "train.jsonl").write_text("".join(itertools.islice(lines, TRAINING_EXAMPLES)), encoding="utf-8")
        command = [sys.executable, "-m", "twofold_trainer", "init", "--out", str(work / "store"), "--epochs", "3"]
        run_command([*command, "--train", str(work / "train.jsonl"), "--dev", str(sets / "hwu64" / "dev.jsonl")])
    return Store(work / "store").get("current")


def main() -> None:
    """Measure all schemes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(".work/precision"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = train(arguments.sets, arguments.work)
    graphs = arguments.work / "graphs"
    shutil.rmtree(graphs, ignore_errors=True)
    graphs.mkdir()
    threads = len(os.sched_getaffinity(0))
    examples = list(read_examples(arguments.sets / "hwu64" / "test.jsonl"))
    names = list(
        make_graphs(checkpoint, [example.text for example in read_examples(arguments.work / "train.jsonl")], graphs)
    )
    answers = measure_answers(checkpoint, graphs, names, examples, threads)
    schemes = [open_scheme(checkpoint, graphs, name, threads) for name in names]
    speeds = {
        texts: measure_speed(schemes, read_texts(arguments.sets, (texts,))[:TEXTS], arguments.rounds) for texts in SETS
    }
    table = {name: {**answers[name], **{texts: speeds[texts][name] for texts in SETS}} for name in names}
    [quantised] = checkpoint.manifest.reduced
    int8 = table["model.int8"]
    figures = {
        "reduced_precision_speedup": min(int8[texts]["speedup"] for texts in SETS),
        "reduced_precision_cpu_speedup": min(int8[texts]["cpu_speedup"] for texts in SETS),
        "isolation_error": int8["isolation_error"],
        "gate_passed": float(quantised.passed),
    }
    report.write(
        "precision",
        settings={"rounds": arguments.rounds, "threads": threads, "texts": TEXTS},
        figures=figures,
        gate=quantised.reason,
        schemes=table,
    )


if __name__ == "__main__":
    main()

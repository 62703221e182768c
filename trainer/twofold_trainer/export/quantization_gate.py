"""Build a graph in reduced precision, and decide whether it may serve: row isolation, and a gate against the fp32 graph."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from twofold_checkpoint.checkpoint import GOLDEN, INT8_FILES, INT8_GOLDEN, INT8_GRAPH
from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.encoding import Encoder, Encoding
from twofold_checkpoint.examples import Example
from twofold_checkpoint.golden import ISOLATION_TOLERANCE, GoldenAnswer, read_golden, write_golden
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS, HeadName, ReducedGraph, Score
from twofold_checkpoint.protocol.events import Event, NoteAdded

from twofold_trainer.evaluation.gate import Comparison, Pair, compare
from twofold_trainer.export.onnx_export import Graph, parity_batches
from twofold_trainer.export.quantization import quantise_graph
from twofold_trainer.scoring.scorer import BATCH_SIZE
from twofold_trainer.scoring.scores import METRIC_OF, HeadScore, accuracy, count_spans, span_f1
from twofold_trainer.stop import StopSignal

Floats = NDArray[np.float32]
REDUCED_MARGIN = 1.0
"""Largest drop of a head in reduced precision against fp32, in points."""
REDUCED_GATE_TOKENS = 12_000
"""Tokens of held-out examples that evaluate a reduced graph; a MiniLM takes two seconds for them in both precisions."""
ISOLATION_TEXTS = 64
"""Number of texts from which the batches of the isolation test are built."""


@dataclass(frozen=True, slots=True)
class QuantizationInputs:
    """The inputs for building and evaluating a reduced graph."""

    labels: LabelSet
    encoder: Encoder
    held_out: Sequence[Example]
    """Examples that training never saw, those of the gate first."""
    seed: int
    threads: int
    answered: Mapping[str, Prediction] = field(default_factory=dict)
    """Known fp32 predictions, by text."""


def reduce_precision(
    reduction: QuantizationInputs, staged: Path, stop: StopSignal
) -> Generator[Event, None, tuple[ReducedGraph, ...]]:
    """Write the int8 graph and compare it with the fp32 graph; its files stay only if it passes."""
    stop.check()
    if not quantise_graph(staged):
        return ()
    fp32 = Graph(staged, threads=reduction.threads)
    int8 = Graph(staged, threads=reduction.threads, name=INT8_GRAPH)
    evaluated = evaluate_quantized(reduction, fp32, int8, stop)
    if evaluated.passed:
        pad_id = reduction.encoder.settings.pad_id
        answers = []
        for golden in read_golden(staged / GOLDEN):
            [answer] = int8.predict(reduction.encoder.encode([golden.text]), reduction.labels, pad_id)
            answers.append(GoldenAnswer(text=golden.text, prediction=answer))
        write_golden(staged / INT8_GOLDEN, answers)
    else:
        for name in INT8_FILES:
            (staged / name).unlink(missing_ok=True)
    yield NoteAdded(message=evaluated.reason)
    return (evaluated,)


def evaluate_quantized(reduction: QuantizationInputs, fp32: Graph, int8: Graph, stop: StopSignal) -> ReducedGraph:
    """Check that int8 isolates rows and that each head is non-inferior to fp32 on held-out examples."""
    examples = _choose(reduction)
    error = measure_isolation(
        int8, [example.text for example in examples[:ISOLATION_TEXTS]] or ["a"], reduction.encoder
    )
    unanswered = [example for example in examples if example.text not in reduction.answered]
    answered = dict(
        zip((example.text for example in unanswered), answer(fp32, unanswered, reduction, stop), strict=True)
    )
    before = [reduction.answered.get(example.text) or answered[example.text] for example in examples]
    after = answer(int8, examples, reduction, stop)
    comparisons = {
        head: compare(Pair(old, new), "base", REDUCED_MARGIN, seed=reduction.seed)
        for head in HEADS
        if (old := head_score(examples, before, head)) is not None
        and (new := head_score(examples, after, head)) is not None
    }
    isolated = error <= ISOLATION_TOLERANCE
    proven = len(comparisons) == len(HEADS) and all(_proven(comparison) for comparison in comparisons.values())
    reasons = [describe_comparison(head, comparison) for head, comparison in comparisons.items()]
    reasons += [f"no held-out example is annotated for the {head} head" for head in HEADS if head not in comparisons]
    reasons.append(
        f"a row alone and in a batch differ by {error:.0e}, {'within' if isolated else 'above'} {ISOLATION_TOLERANCE:.0e}"
    )
    passed = isolated and proven
    return ReducedGraph(
        precision="int8",
        passed=passed,
        reason=f"The int8 graph may{'' if passed else ' not'} serve: {'; '.join(reasons)}.",
        isolation_error=error,
        scores=tuple(_score_of(head, comparison) for head, comparison in comparisons.items()),
    )


def describe_comparison(head: HeadName, comparison: Comparison) -> str:
    """Describe the comparison of a head in a clause."""
    figures = f"{100 * comparison.before:.1f} -> {100 * comparison.after:.1f} on {comparison.examples} examples"
    drop = max(0.0, -100 * comparison.bounds.lower)
    if _proven(comparison):
        return f"{head} {figures}: a drop of {drop:.2f} points or more is excluded (95 % confidence)"
    more = "" if comparison.needed_examples is None else f"; about {comparison.needed_examples} examples would decide"
    return f"{head} {figures}: a drop of {drop:.2f} points is not excluded, and the margin is {REDUCED_MARGIN:g}{more}"


def measure_isolation(graph: Graph, texts: Sequence[str], encoder: Encoder) -> float:
    """Return the largest difference of a probability between a row alone and the same row in batches of many shapes."""
    worst = 0.0
    answered: dict[tuple[int, ...], tuple[list[Floats], NDArray[np.int64]]] = {}
    batches = parity_batches(texts, encoder)  # They share texts.

    def run(*encodings: Encoding) -> tuple[list[Floats], NDArray[np.int64]]:
        batch = tuple(map(id, encodings))
        if batch not in answered:
            answered[batch] = graph.run(encodings, encoder.settings.pad_id)
        return answered[batch]

    for batch in batches:
        together, mask = run(*batch)
        first = 0
        for encoding in batch:
            alone, row_mask = run(encoding)
            rows = slice(first, first + len(encoding.windows))
            first, length = rows.stop, row_mask.shape[1]
            real = row_mask.astype(bool)
            for index in (0, 1):
                batched, single = together[index][rows], alone[index]
                if index:
                    batched, single = batched[:, :length][real], single[real]
                worst = max(worst, float(np.abs(_softmax(batched) - _softmax(single)).max(initial=0.0)))
        assert first == len(mask), "Rows of a batch were not compared. This is a bug."
    return worst


def answer(
    graph: Graph, examples: Sequence[Example], reduction: QuantizationInputs, stop: StopSignal
) -> list[Prediction]:
    """Return the predictions of a graph for examples, in order."""
    encodings = reduction.encoder.encode([example.text for example in examples])
    order = sorted(range(len(encodings)), key=lambda index: len(encodings[index].ids))
    answers: list[Prediction] = [Prediction()] * len(encodings)
    for first in range(0, len(order), BATCH_SIZE):
        stop.check()
        chosen = order[first : first + BATCH_SIZE]
        batch: list[Encoding] = [encodings[index] for index in chosen]
        predictions = graph.predict(batch, reduction.labels, reduction.encoder.settings.pad_id)
        for index, prediction in zip(chosen, predictions, strict=True):
            answers[index] = prediction
    return answers


def head_score(examples: Sequence[Example], answers: Sequence[Prediction], head: HeadName) -> HeadScore | None:
    """Return the head_score of predictions for a head, on the examples that are annotated for it."""
    pairs = list(zip(examples, answers, strict=True))
    if head == "classifier":
        return accuracy(
            [
                int(prediction.labels[0].label == example.label)
                for example, prediction in pairs
                if example.label is not None
            ]
        )
    return span_f1(
        [
            count_spans(prediction.entities, example.entities, example.annotated_types)
            for example, prediction in pairs
            if example.entities is not None
        ]
    )


def _proven(comparison: Comparison) -> bool:
    return comparison.bounds.lower > -REDUCED_MARGIN / 100


def _score_of(head: HeadName, comparison: Comparison) -> Score:
    return Score(head=head, metric=METRIC_OF[head], value=comparison.after, examples=comparison.examples)


def _choose(reduction: QuantizationInputs) -> list[Example]:
    """Choose held-out examples in order, each text once, up to the token limit of the gate."""
    by_text = {example.text: example for example in reversed(reduction.held_out)}
    chosen, tokens = [], 0
    for example in reversed(by_text.values()):
        tokens += len(reduction.encoder.encode([example.text])[0].ids)
        if tokens > REDUCED_GATE_TOKENS:
            break
        chosen.append(example)
    return chosen


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))

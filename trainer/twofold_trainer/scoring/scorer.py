"""Predict and score held-out examples, with the same decoding as in serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from twofold_checkpoint.decoding import Prediction, decode
from twofold_checkpoint.encoding import Encoder, Encoding
from twofold_checkpoint.examples import Example
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName

from twofold_trainer.datasets.annotations import annotated_for
from twofold_trainer.modeling.features import Features, FeatureSource, live
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.scoring.calibration import expected_calibration_error
from twofold_trainer.scoring.scores import HeadScore, accuracy, count_spans, span_f1, span_hits
from twofold_trainer.stop import StopSignal

BATCH_SIZE = 32
"""Batch size of scoring."""


def predict(
    model: TwofoldModel,
    encodings: Sequence[Encoding],
    labels: LabelSet,
    pad_id: int,
    *,
    heads: Sequence[HeadName] = ("classifier", "ner"),
    source: FeatureSource | None = None,
    stop: StopSignal | None = None,
) -> list[Prediction]:
    """Return the best label and all entities of each text, in order. Raises CancelledError.

    *source* provides the features of the texts; by default, they are computed with the full model.
    """
    source = source or live(model, pad_id, heads=heads)
    predictions: list[Prediction] = [Prediction()] * len(encodings)
    order = sorted(range(len(encodings)), key=lambda index: len(encodings[index].ids))
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad():
        for first in range(0, len(order), BATCH_SIZE):
            if stop is not None:
                stop.check()
            indices = order[first : first + BATCH_SIZE]
            batch = [encodings[index] for index in indices]
            for index, prediction in zip(indices, _decode(model, batch, source(batch), labels, heads), strict=True):
                predictions[index] = prediction
    for module in was_training:
        module.training = True
    return predictions


def _decode(
    model: TwofoldModel,
    encodings: Sequence[Encoding],
    features: Features,
    labels: LabelSet,
    heads: Sequence[HeadName],
) -> list[Prediction]:
    classifier = list(model.classifier(features.pooled).numpy()) if "classifier" in heads else None
    ends = np.cumsum([len(encoding.ids) for encoding in encodings])[:-1]
    ner = np.split(model.ner(features.tokens).numpy(), ends) if "ner" in heads else None
    return decode(encodings, classifier, ner, labels)


class Scorer:
    """The held-out examples of one head, encoded once, on which models are scored."""

    def __init__(
        self, examples: Sequence[Example], head: HeadName, encoder: Encoder, stop: StopSignal | None = None
    ) -> None:
        self.head = head
        self._stop = stop
        self.examples = annotated_for(examples, head)
        self.encodings = encoder.encode([example.text for example in self.examples])
        self._pad_id = encoder.settings.pad_id

    def predict(
        self, model: TwofoldModel, labels: LabelSet, source: FeatureSource | None = None
    ) -> tuple[Prediction, ...]:
        """Return the model's predictions for the examples, in order."""
        return tuple(
            predict(model, self.encodings, labels, self._pad_id, heads=[self.head], source=source, stop=self._stop)
        )

    def score_predictions(self, predictions: Sequence[Prediction]) -> HeadScore | None:
        """Return the score of predictions for the examples; None without examples."""
        pairs = list(zip(self.examples, predictions, strict=True))
        if self.head == "classifier":
            best = [(example, prediction.labels[0]) for example, prediction in pairs]
            hits = [(label.score, int(label.label == example.label)) for example, label in best]
            score = accuracy([right for _, right in hits])
        else:
            texts = [
                (prediction.entities, example.entities or (), example.annotated_types) for example, prediction in pairs
            ]
            hits = [hit for text in texts for hit in span_hits(*text)]
            score = span_f1([count_spans(*text) for text in texts])
        if score is None:
            return None
        confidences = [min(1.0, confidence) for confidence, _ in hits]  # float32 rounding can exceed 1 by the last bit.
        return replace(score, calibration_error=expected_calibration_error(confidences, [right for _, right in hits]))

    def score(self, model: TwofoldModel, labels: LabelSet, source: FeatureSource | None = None) -> HeadScore | None:
        """Return the score of the model; None without examples."""
        return self.score_predictions(self.predict(model, labels, source))

"""A text with its predictions for the fake server, and a retry policy with short waits."""

from twofold import Entity, LabelScore, Prediction, Retry

TEXT = "Ada was in Paris"
PREDICTIONS = {
    TEXT: Prediction(
        label="statement",
        labels=(LabelScore(label="statement", score=0.75), LabelScore(label="question", score=0.25)),
        entities=(Entity(start=0, end=3, type="PER", score=0.5), Entity(start=11, end=16, type="LOC", score=1.0)),
    )
}
FAST_RETRY = Retry(initial_backoff=0.001, max_backoff=0.002)

"""What the fake server of these tests answers, and a policy that does not let them wait."""

from twofold import Entity, LabelScore, Prediction, Retry

ADA = "Ada was in Paris"
ANSWERS = {
    ADA: Prediction(
        label="statement",
        labels=(LabelScore(label="statement", score=0.75), LabelScore(label="question", score=0.25)),
        entities=(Entity(start=0, end=3, type="PER", score=0.5), Entity(start=11, end=16, type="LOC", score=1.0)),
    )
}
QUICK = Retry(first=0.001, most=0.002)

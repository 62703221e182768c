"""Measure the three scores of a job before and after training: protected, retained, new."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName, Score, other_head
from twofold_checkpoint.protocol.events import Event, Figure, Moment, ScoreMeasured

from twofold_trainer.modeling.model import TwofoldModel, load_model
from twofold_trainer.planning.plan import Plan
from twofold_trainer.scoring.scorer import Scorer, predict
from twofold_trainer.scoring.scores import HeadScore, accuracy, span_f1
from twofold_trainer.stop import StopSignal

Scores = dict[Figure, HeadScore | None]


class JobEvaluator:
    """The three scorers of a job: the protected task, the adapted head's old labels, and the new data."""

    def __init__(self, plan: Plan, stop: StopSignal) -> None:
        head = plan.request.head
        self.scorers: dict[Figure, Scorer] = {
            "protected": Scorer(plan.protected_gate, other_head(head), plan.encoder, stop),
            "retained": Scorer(plan.memory.gate, head, plan.encoder, stop),
            "new": Scorer(plan.parts.gate, head, plan.encoder, stop),
        }
        self._pad_id, self._stop = plan.encoder.settings.pad_id, stop
        # A remembered text with annotations for both heads is in two scorers, but runs once.
        self._encodings = {encoding.text: encoding for scorer in self.scorers.values() for encoding in scorer.encodings}
        self._labels: dict[Moment, LabelSet] = {"before": plan.base.manifest.labels, "after": plan.labels}
        self.answers: dict[Moment, dict[Figure, tuple[Prediction, ...]]] = {}
        """The predictions of each measurement."""

    def measure(self, model: TwofoldModel, moment: Moment) -> Generator[Event, None, Scores]:
        """Score the model and yield the scores as events. Its answers are stored for the report."""
        self.answers[moment] = self._answer(model, moment)
        scores = self._rate(self.answers[moment])
        for figure, score in scores.items():
            if score is not None:
                yield measured(score, figure, moment)
        return scores

    def by_text(self, moment: Moment) -> dict[str, Prediction]:
        """Return the predictions of a measurement by text."""
        answers = self.answers[moment]
        return {
            encoding.text: answer
            for figure, scorer in self.scorers.items()
            for encoding, answer in zip(scorer.encodings, answers[figure], strict=True)
        }

    def protected_text(self, index: int) -> str:
        """Return the text of the protected example at *index*."""
        return self.scorers["protected"].examples[index].text

    def score_approved(self, checkpoint: Checkpoint | None) -> HeadScore | None:
        """Score the protected task of the checkpoint that a person last approved."""
        if checkpoint is None:
            return None
        return self.scorers["protected"].score(load_model(checkpoint), checkpoint.manifest.labels)

    def score(self, model: TwofoldModel, moment: Moment) -> Scores:
        """Score the model."""
        return self._rate(self._answer(model, moment))

    def _answer(self, model: TwofoldModel, moment: Moment) -> dict[Figure, tuple[Prediction, ...]]:
        texts = self._encodings.values()
        predictions = predict(model, list(texts), self._labels[moment], self._pad_id, stop=self._stop)
        by_text = dict(zip(self._encodings, predictions, strict=True))
        return {
            figure: tuple(by_text[encoding.text] for encoding in scorer.encodings)
            for figure, scorer in self.scorers.items()
        }

    def _rate(self, answers: Mapping[Figure, Sequence[Prediction]]) -> Scores:
        return {figure: scorer.score_predictions(answers[figure]) for figure, scorer in self.scorers.items()}


def measured(score: HeadScore, figure: Figure, moment: Moment) -> ScoreMeasured:
    """Return the event of a score."""
    return ScoreMeasured(
        figure=figure,
        moment=moment,
        metric=score.metric,
        value=score.value,
        examples=score.examples,
    )


def join_scores(after: Mapping[Figure, HeadScore | None]) -> tuple[Score, ...]:
    """Combine the candidate's scores into one per head, over all held-out examples."""
    joined: dict[HeadName, list[HeadScore]] = {}
    for score in after.values():
        if score is not None:
            joined.setdefault(score.head, []).append(score)
    combined = []
    for head, scores in joined.items():
        outcomes = [outcome for score in scores for outcome in score.outcomes]
        head_score = accuracy(outcomes) if head == "classifier" else span_f1(outcomes)  # type: ignore[arg-type]
        assert head_score is not None
        combined.append(head_score.as_score())
    return tuple(combined)

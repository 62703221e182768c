"""A test set of one head: gold answers, a learner's predictions after each step, and their scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName
from twofold_trainer.scoring.scorer import predict

from benchmarks.adaptation.method_interface import Learner
from benchmarks.adaptation.runs import Change
from benchmarks.adaptation.scorer import METRICS, Scorer, write_gold, write_predictions


@dataclass(frozen=True, slots=True)
class HeadTestSet:
    """Hold a test set with its files in *directory*. *step* counts the steps that preceded a prediction."""

    head: HeadName
    examples: tuple[Example, ...]
    types: frozenset[str]
    """The entity types that the texts are annotated for."""
    directory: Path
    scorer: Scorer

    @classmethod
    def write(
        cls,
        head: HeadName,
        examples: tuple[Example, ...],
        directory: Path,
        scorer: Scorer,
        *,
        train: tuple[Example, ...],
    ) -> HeadTestSet:
        """Write the gold answers. The entity types are those of the test set and of its training data.

        A small test set need not contain every type that its annotators looked for.
        """
        directory.mkdir(parents=True, exist_ok=True)
        write_gold(directory / "gold.jsonl", examples)
        types = frozenset(name for example in (*train, *examples) for name in example.annotated_types or ())
        return cls(head, examples, types, directory, scorer)

    def predict(self, learner: Learner, step: int) -> None:
        """Write the learner's predictions."""
        encodings = learner.encoder.encode([example.text for example in self.examples])
        predictions = predict(learner.model, encodings, learner.labels, learner.pad_id, heads=[self.head])
        write_predictions(self._predictions(step), self.examples, predictions)

    def score(self, step: int, *, strict: bool = False) -> float:
        """Score the predictions after a step, from 0 to 1. If *strict*, entities of other types count as errors."""
        types = None if strict or self.head == "classifier" else self.types
        return float(self.scorer.score(self._gold, self._predictions(step), self.head, types)[METRICS[self.head]])

    def change(self, step: int, *, strict: bool = False) -> Change:
        """Score the predictions before and after a step."""
        return Change(before=self.score(step - 1, strict=strict), after=self.score(step, strict=strict))

    def flips(self, step: int) -> tuple[int, int]:
        """Return how many texts a step changed from right to wrong, and from wrong to right."""
        counts = self.scorer.flips(self._gold, self._predictions(step - 1), self._predictions(step), self.head)
        return counts["negative"], counts["positive"]

    def changed(self, step: int) -> int:
        """Return how many texts have a different answer after a step."""
        return self.scorer.changed(self._predictions(step - 1), self._predictions(step), self.head)

    @property
    def _gold(self) -> Path:
        return self.directory / "gold.jsonl"

    def _predictions(self, step: int) -> Path:
        return self.directory / f"{step}.jsonl"

"""A test set of one head: its right answers, a student's answers at some moments, and what the scorer says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName
from twofold_trainer.scoring.scorer import predict

from benchmarks.adaptation.method_interface import Student
from benchmarks.adaptation.runs import Change
from benchmarks.adaptation.scorer import FIGURE_OF, Scorer, write_gold, write_predictions


@dataclass(frozen=True, slots=True)
class Exam:
    """Hold a test set; its files lie in a directory of its own. A moment is the number of steps that went before it."""

    head: HeadName
    examples: tuple[Example, ...]
    types: frozenset[str]
    """The entity types that the texts were searched for."""
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
        taught: tuple[Example, ...],
    ) -> Exam:
        """Write the right answers down. The types are those of the test set and of what was *taught* for it.

        A small test set need not have every type that its annotators looked for.
        """
        directory.mkdir(parents=True, exist_ok=True)
        write_gold(directory / "gold.jsonl", examples)
        types = frozenset(name for example in (*taught, *examples) for name in example.annotated_types or ())
        return cls(head, examples, types, directory, scorer)

    def answer(self, student: Student, moment: int) -> None:
        """Write the student's answers down."""
        encodings = student.encoder.encode([example.text for example in self.examples])
        answers = predict(student.model, encodings, student.labels, student.pad_id, heads=[self.head])
        write_predictions(self._answers(moment), self.examples, answers)

    def score(self, moment: int, *, strict: bool = False) -> float:
        """Score the answers of a moment, from 0 to 1. Entities of types that were not looked for count if *strict*."""
        types = None if strict or self.head == "classifier" else self.types
        return float(self.scorer.gold(self._gold, self._answers(moment), self.head, types)[FIGURE_OF[self.head]])

    def change(self, moment: int, *, strict: bool = False) -> Change:
        """Score a moment and the one before it."""
        return Change(before=self.score(moment - 1, strict=strict), after=self.score(moment, strict=strict))

    def flips(self, moment: int) -> tuple[int, int]:
        """Count the texts that a step made wrong, and those that it put right."""
        found = self.scorer.flips(self._gold, self._answers(moment - 1), self._answers(moment), self.head)
        return found["negative"], found["positive"]

    def changed(self, moment: int) -> int:
        """Count the texts that are answered differently after a step."""
        return self.scorer.changed(self._answers(moment - 1), self._answers(moment), self.head)

    @property
    def _gold(self) -> Path:
        return self.directory / "gold.jsonl"

    def _answers(self, moment: int) -> Path:
        return self.directory / f"{moment}.jsonl"
